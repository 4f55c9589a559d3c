"""Configure training; see the recipes, `train` and `machine` in params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.core.config.section import BatchSize, NotNegative, Section, Share
from stages.core.evaluation.config import Unsure
from stages.core.examples.config import Augmentation
from stages.core.nets.config import NetConfig

Epochs = Annotated[int, Field(gt=0, le=10**6)]
Rate = Annotated[float, Field(gt=0, le=1000)]


class CrossEntropy(Section):
    """Choose cross-entropy as the loss."""

    name: Literal["cross_entropy"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """The share of the target's probability that is spread over all classes."""
    class_weight: Share
    """The exponent of the inverse class frequency by which examples are weighted; 0 weights all examples equally, 1 all
    classes."""


class Mse(Section):
    """Choose the mean squared error of the logits against 0 and 1 as the loss."""

    name: Literal["mse"]
    class_weight: Share
    """The exponent of the inverse class frequency by which examples are weighted; 0 weights all examples equally, 1 all
    classes."""


class Sgd(Section):
    """Choose stochastic gradient descent."""

    name: Literal["sgd"]
    lr: Rate
    """The learning rate; with a schedule, the highest one."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """The share of the previous update that is carried over."""
    nesterov: bool
    """Use Nesterov momentum, which needs a momentum above 0."""
    weight_decay: NotNegative
    """The factor of the L2 penalty, which is added to the gradient."""

    @model_validator(mode="after")
    def nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Adam(Section):
    """Choose Adam (Kingma & Ba 2014, arXiv 1412.6980)."""

    name: Literal["adam"]
    lr: Rate
    """The learning rate; with a schedule, the highest one."""
    weight_decay: NotNegative
    """The factor of the L2 penalty, which is added to the gradient."""


class AdamW(Section):
    """Choose Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv 1711.05101)."""

    name: Literal["adamw"]
    lr: Rate
    """The learning rate; with a schedule, the highest one."""
    weight_decay: NotNegative
    """The factor of the weight decay, which is applied to the weights directly, not through the gradient."""


class Constant(Section):
    """Choose a constant learning rate."""

    name: Literal["constant"]


class OneCycle(Section):
    """Choose a rate that rises to the optimizer's lr, then falls to zero (Smith & Topin 2018, arXiv 1708.07120).

    Adam's first beta moves the other way, from 0.95 to 0.85 and back.
    """

    name: Literal["one_cycle"]
    warmup: Annotated[float, Field(gt=0, lt=1)]
    """The share of the steps in which the rate rises."""


class Cosine(Section):
    """Choose a rate that rises linearly to the optimizer's lr, then falls to zero along half a cosine.

    Loshchilov & Hutter 2016, arXiv 1608.03983.
    """

    name: Literal["cosine"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """The share of the steps in which the rate rises."""


Loss = Annotated[CrossEntropy | Mse, Field(discriminator="name")]
Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]
Schedule = Annotated[Constant | OneCycle | Cosine, Field(discriminator="name")]


class Regularization(Section):
    """Regularize beyond the model's dropout and the optimizer's weight decay; 0 turns a method off."""

    l1: NotNegative
    """The factor of the sum of the absolute weights, which is added to the loss."""
    ema: Annotated[float, Field(ge=0, lt=1)]
    """The decay per step of the moving average of the weights, which becomes the model."""
    patience: Annotated[int, Field(ge=0, le=10**6)]
    """The number of epochs without a lower validation loss after which the run ends; it needs schedule `constant`."""


class Recipe(Section):
    """Describe one way to train one network."""

    model: NetConfig
    """The network."""
    loss: Loss
    """The loss that training minimizes."""
    optimizer: Optimizer
    """The rule that updates the weights."""
    schedule: Schedule
    """The course of the learning rate during the run."""
    augmentation: Augmentation
    """Random changes of the training images."""
    regularization: Regularization
    """Further measures against overfitting."""
    precision: Literal["auto", "float32", "bfloat16"]
    """The floating-point type of the computation; `auto` is bfloat16 where the processor supports it, else float32."""
    batch_size: BatchSize
    """The number of images per step. If there are fewer training images, all of them form one batch."""
    epochs: Epochs
    """The number of passes through the training split."""

    @model_validator(mode="after")
    def patience_needs_constant_rate(self) -> Self:
        if self.regularization.patience and self.schedule.name != "constant":
            raise ValueError(
                f"regularization.patience ({self.regularization.patience}) would stop before schedule"
                f" '{self.schedule.name}' has brought the rate down; allowed: patience 0 or schedule 'constant'"
            )
        return self


class Train(Section):
    """Configure stage `train`, for every recipe."""

    unsure: Unsure
    """The targets that decide which predictions count as unsure."""


class Machine(Section):
    """Configure how to compute; none of this is meant to change a result."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    """The device to compute on; `auto` is CUDA if there is one, else MPS, else the CPU."""
    processes: Annotated[int, Field(ge=1, le=1024)]
    """The number of training processes on this machine, which share each batch: one per GPU, or several on a CPU."""
    cuda_graph: bool
    """On CUDA with one process, record the kernels of a step up to the gradients once, then launch them together."""
    # It is not `off`, which DVC writes without quotes and YAML 1.1 reads as false.
    compile: Literal["none", "default", "max-autotune-no-cudagraphs"]
    """The mode of `torch.compile`, or `none`."""
