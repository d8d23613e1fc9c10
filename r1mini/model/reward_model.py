"""A reward model: the decoder with a scalar head, as in Hugging Face's
`…ForSequenceClassification` with one label. The score of a text is that of its last token."""

from dataclasses import replace

from torch import nn

from r1mini.model.config import ModelConfig
from r1mini.model.transformer import Transformer


class RewardModel(Transformer):
    """`model(tokens_BT) -> scores_BT1`, of every text from its beginning to each token."""

    def __init__(self, config: ModelConfig):
        super().__init__(replace(config, tie_word_embeddings=False))
        del self.lm_head
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    @property
    def head(self) -> nn.Linear:
        return self.score
