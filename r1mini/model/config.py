"""The configuration of a model."""

from dataclasses import dataclass
from typing import Any

# The linear layers of a decoder layer: four of the attention, three of the MLP.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelConfig:
    """The fields of Hugging Face's config.json that decide the computation, under their names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None  # rope_type (linear, llama3, yarn) and its numbers
    tie_word_embeddings: bool = True
    attention_bias: bool = False  # Qwen2: biases on q, k, v
    qk_norm: bool = False  # Qwen3: RMSNorm on each query and key head
    initializer_range: float = 0.02

    def max_completion(self, max_new_tokens: int, prompt_tokens: int = 0) -> int:
        """The most tokens a completion can have: the given limit, or what the context leaves."""
        return min(max_new_tokens, self.max_position_embeddings - prompt_tokens)
