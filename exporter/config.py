"""``config.json`` read by an allow-list: a key that could change the maths and is not understood is refused by name.

Each family declares the keys that it honours, as a subclass of `FamilyConfig`. Keys that cannot change a forward pass
(bookkeeping, training, generation) are listed here once. A key that is neither is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pydantic

from exporter.errors import rejected, unsupported

INERT = frozenset(
    """_attn_implementation _name_or_path architectures attention_dropout attn_implementation attn_pdrop auto_map
    bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout decoder_start_token_id dtype embd_pdrop
    embedding_dropout eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    hidden_dropout id2label initializer_range keys_to_ignore_at_inference label2id model_type n_ctx num_labels
    output_attentions output_hidden_states pad_token_id prefix pretraining_tp problem_type resid_pdrop
    return_dict return_dict_in_generate sep_token_id summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj task_specific_params tokenizer_class torch_dtype transformers_version
    unsloth_fixed unsloth_version use_cache""".split()
)
"""Keys that no forward pass reads."""

OFF: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False,),
}
"""Features of other kinds of model, tolerated while they are turned off."""


class FamilyConfig(pydantic.BaseModel):
    """Keys that a family honours. A field's type and validators are what it accepts.

    ``absent`` names keys of other models that this family tolerates only at the value given (a feature turned off).
    """

    model_config = pydantic.ConfigDict(extra="allow", frozen=True, strict=False, protected_namespaces=())
    absent: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @classmethod
    def parse(cls, config: Mapping[str, Any], family: str) -> Self:
        """Check and type a raw configuration.

        Raises:
            OnnxGptError: ``config-key-unknown`` (exit 3) or ``config-invalid`` (exit 4).
        """
        known = set(cls.model_fields)
        unknown = [
            f"{key} = {value!r}"
            for key, value in config.items()
            if key not in known and key not in INERT and not _tolerated(cls.absent, key, value)
        ]
        if unknown:
            raise unsupported(
                "config-key-unknown",
                f"config.json has keys that the {family} family does not implement",
                "remove the key if it has no effect, or use a model without that feature",
                tuple(unknown),
            )
        try:
            return cls.model_validate({key: config[key] for key in known if key in config})
        except pydantic.ValidationError as error:
            raise rejected(
                "config-invalid",
                f"config.json is not a valid {family} configuration",
                "fix the keys named above",
                tuple(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()),
            ) from error


def _tolerated(absent: Mapping[str, tuple[Any, ...]], key: str, value: Any) -> bool:
    return value in OFF.get(key, ()) or value in absent.get(key, ())
