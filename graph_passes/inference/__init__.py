"""What each op says of its outputs: types, shapes on symbolic dims, contents of small integer tensors."""
