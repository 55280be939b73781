"""The two ends of a model, which no block holds: its first and its last convolution."""

from __future__ import annotations

from torch import Tensor, nn

from ..blocks import Block, Refusal


class Ends:
    """A model seen as stem, body, head, pool and classifier.

    The base class only names the ends. A subclass also says how to run the parts, so that the
    model's ``methods`` can go from the body to ``conv_act_pool`` without writing the head's map.
    """

    #: Methods of the model that the patch replaces on the instance.
    methods: tuple[str, ...] = ()
    #: Methods of the model that those replace the call of, too.
    bypassed_methods: tuple[str, ...] = ()
    #: Modules that a fused forward does not call, nor anything in them.
    bypassed: tuple[str, ...] = ()
    #: Containers that it does not call, but whose children it does.
    opened: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        stem_name: str,
        stem: Block | Refusal,
        head_name: str | None = None,
        head: Block | Refusal | None = None,
        *,
        run_by_model: bool = False,
    ):
        """run_by_model: no single module computes an end; the model's own methods run both."""
        self.model = model
        self.stem_name, self.stem = stem_name, stem
        self.head_name, self.head = head_name, head
        self.run_by_model = run_by_model

    def original_stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def body(self, x: Tensor) -> Tensor:
        """From the stem's output to the head's input."""
        raise NotImplementedError

    def original_head(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def after_head(self, x: Tensor) -> Tensor:
        """From the head's map to the model's output."""
        raise NotImplementedError

    def after_pool(self, pooled: Tensor) -> Tensor:
        """From the (N, C) mean of the head's map to the model's output."""
        raise NotImplementedError

    def pools_plainly(self) -> bool:
        """Whether the model averages the head's map over H x W and nothing else."""
        return False

    def applies(self) -> bool:
        """Whether, set up as it is, the model runs stem, body, head, pool and classifier."""
        return True
