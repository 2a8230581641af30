"""``config.json`` by an allow-list: a key that could change the maths and is not known is refused by name.

Each family declares the keys that it honours, as a subclass of `FamilyConfig`. Keys that cannot change a
forward pass (bookkeeping, training, generation) are listed here once. A key that is neither is an error,
never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from exporter.errors import OnnxGptError, rejected, unsupported


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BOOKKEEPING = _words(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _name_or_path _num_labels architectures attn_implementation auto_map dtype finetuning_task id2label
    keys_to_ignore_at_inference label2id max_sequence_length model_type n_ctx n_special num_labels
    output_attentions output_hidden_states output_past output_scores predict_special_tokens prefix
    problem_type return_dict tokenizer_class tokenizer_name torch_dtype torchscript transformers.js_config
    transformers_version unsloth_fixed unsloth_version
    """
)
TRAINING = _words(
    """
    activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout dropout
    emb_pdrop embd_pdrop embed_dropout embedding_dropout gradient_checkpointing hidden_dropout hidden_dropout_prob
    init_std initializer_range layerdrop pretraining_tp resid_dropout resid_pdrop residual_dropout
    summary_activation summary_first_dropout summary_last_dropout
    summary_proj_to_labels summary_type summary_use_proj tf_legacy_loss use_bfloat16
    """
)
GENERATION = _words(
    """
    bad_words_ids begin_suppress_tokens bos_token_id cache_implementation decoder_start_token_id
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences pad_token_id
    remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature top_k top_p typical_p use_cache
    """
)
INERT = BOOKKEEPING | TRAINING | GENERATION
"""Keys that no forward pass reads. transformers 4 wrote generation settings into ``config.json`` too."""

OFF: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False,),
}
"""Features of other kinds of model, tolerated while they are turned off."""

Size = Annotated[int, pydantic.Field(ge=1, le=1 << 24)]
"""A dim of a tensor. The bound is far above any model's and keeps a hostile number out of arithmetic."""
Layers = Annotated[int, pydantic.Field(ge=1, le=10_000)]
Epsilon = Annotated[float, pydantic.Field(gt=0, lt=1)]
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(gt=0, le=1)]
LayerType = Literal["full_attention", "sliding_attention"]


class FamilyConfig(pydantic.BaseModel):
    """Keys that a family honours. A field's type and validators are what it accepts; no value is coerced.

    ``absent`` names keys of other models that this family tolerates only at the values given (features turned
    off), ``spelled`` fields by other names that configurations have for them.
    """

    model_config = pydantic.ConfigDict(frozen=True, strict=True, protected_namespaces=())
    absent: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    spelled: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def respelled(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """A raw configuration with the fields' own names.

        Raises:
            OnnxGptError: ``config-invalid`` where two names of one field contradict each other.
        """
        own: dict[str, Any] = {key: value for key, value in config.items() if key not in cls.spelled}
        for key, name in cls.spelled.items():
            if key in config and own.setdefault(name, config[key]) != config[key]:
                raise invalid(
                    "config.json contradicts itself",
                    f"{key} is {config[key]!r:.200}, {name} {own[name]!r:.200}",
                )
        return own

    @classmethod
    def parse(cls, config: Mapping[str, Any], family: str) -> Self:
        """Check and type a raw configuration.

        Raises:
            OnnxGptError: ``config-key-unknown`` (exit 3) or ``config-invalid`` (exit 4).
        """
        config = cls.respelled(config)
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [
            f"{key} = {value!r:.200}"
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
            raise invalid(
                f"config.json is not a valid {family} configuration",
                *(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()),
            ) from error


class HeadsConfig(FamilyConfig):
    """The dims that most families spell alike, and how they must fit together."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Channels of one head, D."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @pydantic.model_validator(mode="after")
    def _one_spelling(self) -> Self:
        if self.rope_scaling and self.rope_parameters:
            raise ValueError(
                "rope_scaling and rope_parameters are two spellings of one thing, and both are given"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.num_attention_heads} heads"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not share {self.kv_heads} kv heads evenly")
        return self


def windows_of(
    layer_types: Sequence[LayerType] | None, default: Sequence[LayerType], window: int | None
) -> list[int | None]:
    """Attention window of each layer.

    Args:
        layer_types: as the configuration states them; None where it does not.
        default: what the family makes of its other keys; one for each layer.
        window: of the sliding layers.

    Raises:
        OnnxGptError: ``config-invalid`` where types are too few or many, or a sliding layer has no window.
    """
    types = default if layer_types is None else layer_types
    if len(types) != len(default):
        raise invalid(
            "config.json contradicts itself",
            f"layer_types has {len(types)} entries for {len(default)} layers",
        )
    if "sliding_attention" in types and window is None:
        raise invalid(
            "config.json contradicts itself", "layer_types has sliding_attention, and sliding_window is off"
        )
    return [window if kind == "sliding_attention" else None for kind in types]


def invalid(cause: str, *details: str) -> OnnxGptError:
    """A configuration that is malformed or contradicts itself."""
    return rejected("config-invalid", cause, "fix the keys named above", details)


def _tolerated(absent: Mapping[str, tuple[Any, ...]], key: str, value: Any) -> bool:
    allowed = (*OFF.get(key, ()), *absent.get(key, ()))
    return any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in allowed)
