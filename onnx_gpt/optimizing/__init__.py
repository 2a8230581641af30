"""The main job, stage by stage: export, calibrate, choose codes, build the graphs, prove and publish."""
