"""The options of a compression with their defaults, saved in the record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lrexport.artifacts import files
from lrexport.artifacts.run_files import DENSE
from lrexport.config.goals import Energy, FromPlan, Goal, SteerableGoal, options_of, values_of
from lrexport.config.options import PHASES, TRAINED, Count, Number, Words, about, option
from lrexport.errors import UsageError
from lrexport.preprocessing import CHANNELS, CROPS, asked_in
from lrexport.signature import Signature
from lrexport.text import is_onnx_name

# Stages of training, as named in commands and reports.
STAGES = {"dense": "dense training", "svd": "SVD training", "fine-tune": "fine-tuning", "baseline": "dense baseline"}
# --help takes its defaults from here, and must not wait for the record's validation library.
AskedScheme = Literal["spatial", "channel", "input-channel", "linear", "auto"]
AskedForm = Literal["explicit", "implicit"]
FORMS = Words(("explicit", "implicit"))
SCHEMES = Words(("spatial", "channel", "input-channel", "auto"))  # linear layers always have the scheme ``linear``
DEFAULT_DENSE_EPOCHS = 20
MOST_EXAMPLES = 16  # pictures of samples in a run
RANK_MULTIPLE = 4  # ONNX Runtime has convolutions in its blocked layout where channels are multiples of 4
UNLABELLED_MINUTES = 2.0  # of healing, by default, if the data has no labels


@dataclass(frozen=True)
class TrainConfig:
    """MODEL, data and the schedule of all stages.

    ``input`` has the inputs of the network, ``NAME=SHAPE[:DTYPE[:LOW..HIGH]]`` each; ``input_shape`` is enough for one.
    ``weights_key`` and ``teacher_weights_key`` select weights in a file with several that fit the network.
    ``dense_epochs`` None means none if the network comes with weights, else enough to train it. λ_o, λ_s and the kind of
    sparsity are those of equation 3; λ_s "auto" adapts to a budget, layer by layer; ``sparsity`` "path" scales down what
    the budget leaves no room for, without a regulariser. ``keep`` holds patterns of layers that stay dense.
    ``scale_gradients`` makes SGD steps in factors as long as dense ones. ``lr`` is for SVD training and fine-tuning,
    ``dense_lr`` for dense training. ``distill`` is the share of the loss that follows the outputs of ``teacher`` in SVD
    training and fine-tuning: a MODEL with ``teacher_weights``, the dense network of a run, or, if None, of this run.
    ``task`` is what the outputs are for; None: the task of the data. ``log_to`` holds services that training is logged
    to. Up to ``max_bad`` unreadable images are skipped. ``mean``, ``std``, ``value_range``, ``resize``, ``crop`` and
    ``channel_order`` are how pictures become inputs. ``svd_form`` "explicit" trains U, s, V, as in the paper; "implicit"
    trains weights, and refreshes U, s, V on the way.
    ``export_check`` first exports the dense network to ONNX in memory, to find what ``lrexport onnx`` would refuse.
    """

    model: str = field(metadata=about("network", flag=False))
    # The same data may have moved: a run that continues may get its new path.
    data: str | None = option(None, "images", replaceable=True)
    weights: Path | None = option(None, "network")
    weights_key: str | None = option(None, "network", none_decides=True, later=True)
    input_shape: tuple[int, ...] | None = option(None, "network", commas=True)
    input: tuple[str, ...] = option((), "network", later=True)
    scheme: AskedScheme = option("spatial", "svd form", values=SCHEMES, varies=True)
    keep: tuple[str, ...] = option((), "svd form")
    svd_form: AskedForm = option("explicit", "svd form", values=FORMS, later=True)
    download: bool = option(False, "images", needs_data=True, changes="nothing", only_user="where files are written")
    dense_epochs: int | None = option(None, "dense", needs_data=True, values=Count())
    svd_epochs: int = option(6, "svd", needs_data=True, values=Count(), varies=True)
    orthogonality: float = option(1.0, "svd", needs_data=True, values=Number(), varies=True)
    sparsity_strength: float | Literal["auto"] = option(0.03, "svd", needs_data=True, values=Number(), varies=True)
    sparsity: Literal["hoyer", "l1", "path", "none"] = option(
        "hoyer", "svd", needs_data=True, values=Words(("hoyer", "l1", "path", "none")), varies=True
    )
    batch_size: int = option(128, *TRAINED, needs_data=True, values=Count(1))
    accumulate: int = option(1, *TRAINED, needs_data=True, values=Count(1))
    optimizer: Literal["sgd", "adam"] = option("sgd", *TRAINED, needs_data=True, values=Words(("sgd", "adam")))
    scale_gradients: bool = option(True, *TRAINED, needs_data=True)
    lr: float = option(0.02, "svd", "fine-tune", "baseline", needs_data=True, values=Number(above=True), varies=True)
    dense_lr: float = option(0.1, "dense", needs_data=True, values=Number(above=True))
    weight_decay: float = option(1e-4, *TRAINED, needs_data=True, values=Number())
    schedule: Literal["cosine", "step"] = option("cosine", *TRAINED, needs_data=True, values=Words(("cosine", "step")))
    milestones: tuple[float, ...] = option((0.5, 0.75), *TRAINED, needs_data=True, commas=True)
    warmup_epochs: float = option(0.0, *TRAINED, needs_data=True, values=Number())
    distill: float = option(0.5, "svd", "fine-tune", needs_data=True, values=Number(most=1), varies=True)
    # None: the dense network is the teacher.
    teacher: str | None = option(None, "svd", "fine-tune", needs_data=True, none_decides=True)
    teacher_weights: Path | None = option(None, "svd", "fine-tune", needs_data=True, none_decides=True)
    teacher_weights_key: str | None = option(None, "svd", "fine-tune", needs_data=True, none_decides=True, later=True)
    device: str = option("auto", *PHASES, changes="rounding", values=Words(("auto", "cpu", "cuda", "mps")))
    devices: int = option(1, *PHASES, changes="rounding", values=Count(1))
    nodes: int = option(1, *PHASES, changes="rounding", values=Count(1))
    precision: str = option("auto", *TRAINED, needs_data=True, values=Words(("auto", "float32", "bfloat16")))
    compile: bool = option(False, *TRAINED, needs_data=True)
    workers: int | None = option(None, "images", needs_data=True, changes="nothing", values=Count())
    checkpoint_minutes: float = option(30.0, *TRAINED, needs_data=True, changes="nothing", values=Number())
    log_to: tuple[str, ...] = option((), *TRAINED, needs_data=True, changes="nothing", only_user="where training is logged")
    task: str | None = option(None, *TRAINED, "pruning", needs_data=True, replaceable=True, later=True)
    seed: int = option(0, "split")
    heldout: float = option(0.1, "split", needs_data=True, values=Number(most=0.5, above=True))
    max_bad: int = option(0, "images", needs_data=True, values=Count(), later=True)
    # None: as the network's source says, else as ImageNet.
    mean: tuple[float, ...] | None = option(None, "images", needs_data=True, none_decides=True, later=True, commas=True)
    std: tuple[float, ...] | None = option(None, "images", needs_data=True, none_decides=True, later=True, commas=True)
    value_range: str | None = option(None, "images", needs_data=True, none_decides=True, later=True)
    resize: int | None = option(None, "images", needs_data=True, values=Count(1), none_decides=True, later=True)
    crop: str | None = option(None, "images", needs_data=True, values=Words(CROPS), none_decides=True, later=True)
    channel_order: str | None = option(
        None, "images", needs_data=True, values=Words(CHANNELS), none_decides=True, later=True
    )
    export_check: bool = option(True, "network", changes="nothing")

    def __post_init__(self) -> None:
        if self.sparsity_strength == "auto" and self.sparsity in ("none", "path"):
            raise UsageError("--sparsity-strength auto requires --sparsity hoyer or l1", "Give one of them, or a number.")
        if self.sparsity == "path" and self.svd_form != "implicit":
            raise UsageError("--sparsity path requires --svd-form implicit", "Give both, or another --sparsity.")
        if self.input and self.input_shape is not None:
            raise UsageError("--input and --input-shape exclude each other", "--input NAME=SHAPE says everything.")
        Signature.parse(self.input or ("1",))  # for its errors
        assert self.preprocessing is not None  # for its errors
        if self.teacher is None and self.teacher_weights is not None:
            raise UsageError("--teacher-weights requires --teacher", "Give --teacher MODEL.")
        for file, key, flag in (
            (self.weights, self.weights_key, "--weights"),
            (self.teacher_weights, self.teacher_weights_key, "--teacher-weights"),
        ):
            if file is None and key is not None:
                raise UsageError(f"{flag}-key requires {flag}", f"Give {flag} FILE, the file with that key.")
        if self.teacher is not None and not self.distill:
            raise UsageError("--teacher has no effect with --distill 0", "Omit one of the two.")

    @property
    def signature(self) -> Signature | None:
        """What the network takes, as far as the user says so."""
        if self.input:
            return Signature.parse(self.input)
        return None if self.input_shape is None else Signature.of(self.input_shape)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The fields of Preprocessing that the user says, None for the others. Raises UsageError for invalid ones."""
        return asked_in(vars(self))

    def to_record(self) -> dict[str, Any]:
        return _plain(asdict(self))

    def digests(self) -> dict[str, str]:
        """SHA-256 of the files of ``model``, ``weights`` and ``teacher`` as they are now: runs detect changes by it."""
        file = Path(self.model) if is_onnx_name(self.model) else None
        return _digest("model_sha256", file) | _digest("weights_sha256", self.weights) | self.teacher_digest()

    def teacher_digest(self) -> dict[str, str]:
        """The teacher's part of :meth:`digests`."""
        if self.teacher is None:
            return {}
        of_run = Path(self.teacher) if is_onnx_name(self.teacher) else Path(self.teacher) / DENSE
        return _digest("teacher_sha256", self.teacher_weights or of_run)


@dataclass(frozen=True)
class CompressConfig:
    """SVD training as in ``train``, then the goal, fine-tuning and the dense network's training for comparison.

    ``falling_ranks`` reduces ranks to the goal (MACs, parameters or latency) during SVD training. ``rule`` "global"
    minimises the loss of all layers together within the goal, "threshold" uses the paper's one e for all layers. By the
    global rule ranks are multiples of ``rank_multiple``, those below of its half, quarter … down to 4; with a target its
    grain decides instead.
    ``weighting`` weights the energy by the layers' inputs for ``calibration_images`` training images, without data for
    noise; ``reconstruct`` refits pairs on these images.
    ``target`` is where latency is measured with ``threads`` threads, for a goal of latency and for ranks on the machine's
    grain; None: this machine if latency is the goal, else no latency is measured. ``heal_minutes`` is the most that healing
    without labels may take before fine-tuning; None: UNLABELLED_MINUTES if the data has no labels, else none.
    ``examples`` held-out pictures are saved in the run with both networks' outputs, for its report.
    ``baseline_epochs`` "same" trains the dense network for as many further epochs as the compressed one gets.
    """

    train: TrainConfig
    goal: Goal = field(metadata=about("pruning", flag=False))
    falling_ranks: bool = option(False, "svd", needs_data=True)
    rule: Literal["global", "threshold"] = option("global", "pruning", values=Words(("global", "threshold")), varies=True)
    rank_multiple: int = option(RANK_MULTIPLE, "pruning", values=Count(1), later=True)
    target: str | None = option(None, "pruning", only_user="which machines are reached")
    threads: int = option(1, "pruning", values=Count(1))
    weighting: bool = option(True, "pruning")
    reconstruct: bool = option(True, "pruning", needs_data=True)
    calibration_images: int = option(512, "pruning", needs_data=True, values=Count())
    batchnorm_images: int = option(1000, "pruning", needs_data=True, values=Count())
    heal_minutes: float | None = option(None, "pruning", needs_data=True, values=Number(), later=True)
    fine_tune_epochs: int = option(4, "fine-tune", needs_data=True, values=Count(), varies=True)
    baseline_epochs: int | Literal["same"] = option(0, "baseline", needs_data=True)
    examples: int = option(6, "baseline", needs_data=True, changes="nothing", values=Count(), later=True)

    def __post_init__(self) -> None:
        decided = self.rule == "threshold" or isinstance(self.goal, Energy | FromPlan)
        if decided and self.rank_multiple not in (1, RANK_MULTIPLE):
            raise UsageError(
                "--rank-multiple has no effect where a threshold or a plan decides ranks",
                "Omit it, or use --rule global with a goal such as --macs.",
            )
        if self.falling_ranks and self.train.svd_form == "implicit":
            message = "--falling-ranks requires --svd-form explicit: with implicit there are no factors to cut"
            raise UsageError(message, "Use --sparsity-strength auto or --sparsity path, which go towards the budget too.")
        if self.examples > MOST_EXAMPLES:
            raise UsageError(f"invalid --examples {self.examples}: expected at most {MOST_EXAMPLES} pictures, or 0 for none")
        if isinstance(self.goal, SteerableGoal):
            return
        steerable = options_of(SteerableGoal)
        if self.falling_ranks:
            raise UsageError(f"--falling-ranks requires {steerable}", "Give one of them as the goal.")
        if self.train.sparsity_strength == "auto":
            message = f"--sparsity-strength auto requires {steerable}"
            raise UsageError(message, "Give one of them as the goal, or a number as the strength.")
        if self.train.sparsity == "path":
            raise UsageError(f"--sparsity path requires {steerable}", "Give one of them as the goal.")

    def to_record(self) -> dict[str, Any]:
        own = {key: value for key, value in asdict(self).items() if key != "train"}
        return {**self.train.to_record(), **own, "goal": values_of(self.goal)}


def check_trainable(config: TrainConfig) -> None:
    """Raise UsageError for options that SVD training alone does not support."""
    if config.data is None:
        raise UsageError("lrexport train requires --data", "Without data, use lrexport compress, which then skips training.")
    if config.sparsity_strength == "auto":
        message = "--sparsity-strength auto adapts λ_s to a budget, and lrexport train has none"
        raise UsageError(message, "Give --sparsity-strength X, or use lrexport compress with a budget.")
    if config.sparsity == "path":
        message = "--sparsity path goes towards a budget, and lrexport train has none"
        raise UsageError(message, "Give another --sparsity, or use lrexport compress with a budget.")


def check_source(config: CompressConfig, source: Path | None) -> None:
    """Raise UsageError if a compression asks for a stage that the run ``source`` has already finished."""
    if config.falling_ranks and source is not None:
        message = f"--falling-ranks needs SVD training, and {source} has already finished it"
        raise UsageError(message, "Compress the model itself instead of the run.")


def several_need_data() -> UsageError:
    """The error for several processes without data to train on."""
    return UsageError("several devices require data to train on", "Give --data, or use one device.")


def _digest(name: str, path: Path | None) -> dict[str, str]:
    return {name: files.sha256(path)} if path and path.is_file() else {}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values with paths as strings, for JSON."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
