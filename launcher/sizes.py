"""Owns the arithmetic of how big a run gets: state, downloads, memory, disk, time to save. Pure.

Must not know of Kubernetes. Counts of parameters are those of the published model files (SDXL base
1.0); the allowances are stated as such, since a data set and a compiler are not known beforehand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # brings pydantic
    from jobs.specs import InferSpec, Spec, TrainSpec

GIB = 2**30
MIB = 2**20
Shape = tuple[int | None, int | None, int | None]
"""Width, height and number of the pictures of a prompt, where it says them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Parameters of a pipeline's parts."""

    unet: int
    frozen: int
    """Text encoders and VAE."""
    unet_sides: int
    """Inputs plus outputs of every module that LoRA adapts in the UNet."""
    text_sides: int
    """The same for both text encoders."""
    worker_gib: int
    """Host memory allowed for a worker's Python, MindSpore, CANN and compiler, beside weights."""


SDXL = Model(
    unet=2_567_463_684,
    # CLIP ViT-L 123,060,480; OpenCLIP ViT-bigG 694,659,840; VAE 83,653,863.
    frozen=901_374_183,
    # A transformer block of width d adapts q, k, v and out of self-attention (8 d) and of
    # cross-attention, whose k and v read 2048 (6 d + 2 * 2048). SDXL has 10 blocks of d = 640 and
    # 60 of d = 1280: 10 * (14 * 640 + 4096) + 60 * (14 * 1280 + 4096).
    unet_sides=1_451_520,
    # 12 layers of 8 * 768 and 32 layers of 8 * 1280.
    text_sides=401_408,
    worker_gib=8,
)
TINY = Model(unet=6_000_000, frozen=2_000_000, unet_sides=20_000, text_sides=2_048, worker_gib=2)
"""Upper bounds for the small SDXL that ships; its graphs are a hundredth of SDXL's to compile, and
it is there to try a place with: asking for SDXL's memory would turn small places away."""

STATE_BYTES = 12
"""Of a trained parameter: the fp32 master and AdamW's two fp32 moments."""
SPARE_DISK = 2
"""How much more of its node's disk a pod may take than it is thought to need."""
WEIGHT_BYTES = {"fp16": 2, "bf16": 4, "fp32": 4}
"""Of a parameter on the hub: SDXL is published as fp16 and fp32, so bf16 is cast from fp32."""


def model_of(spec: Spec) -> Model:
    """Return the sizes of the spec's model; any that is not `tiny` is taken for an SDXL."""
    return TINY if spec.model == "tiny" else SDXL


def trained(spec: TrainSpec) -> int:
    """Return the number of parameters that are trained.

    LoRA puts `rank * (inputs + outputs)` of them beside each module it adapts.
    """
    model = model_of(spec)
    if spec.method == "vanilla":
        return model.unet
    text = model.text_sides if spec.method == "lora-te" else 0
    return spec.lora_rank * (model.unet_sides + text)


def state_bytes(spec: Spec) -> int:
    """Return the size of one checkpoint: 30.8 GB for a whole UNet, 70 MB for LoRA of rank 4."""
    return STATE_BYTES * trained(spec) if spec.kind == "train" else 0


def model_bytes(spec: Spec) -> int:
    """Return the size of the pipeline's files: 6.9 GB in fp16, 13.9 GB in fp32."""
    model = model_of(spec)
    return WEIGHT_BYTES[spec.precision] * (model.unet + model.frozen)


def picture_bytes(spec: InferSpec, shapes: Mapping[Shape, int] | None = None) -> int:
    """Return an upper bound for all pictures: three bytes a pixel, what PNG is smaller than.

    Args:
        spec: whose prompts may wait in the store.
        shapes: how many of those ask for which pictures; where nobody knows, 10,000 of the
            spec's size are assumed.
    """
    if isinstance(spec.prompts, tuple):
        shapes = Counter((row.width, row.height, row.images) for row in spec.prompts)
    pixels = sum(
        (width or spec.width) * (height or spec.height) * (images or spec.images) * count
        for (width, height, images), count in (shapes or {(None, None, None): 10_000}).items()
    )
    return 3 * pixels


def shm_gib(npus: int) -> int:
    """Return the size of /dev/shm: 4 GiB a worker for HCCL and the loaders of pictures."""
    return 4 * npus


def memory_gib(spec: Spec, npus: int) -> int:
    """Return the host memory a pod cannot do without.

    Each worker holds Python, MindSpore, CANN and its compiler and reads the whole pipeline before
    the NPU has it; the first one also holds a copy of the state while it is saved.
    """
    workers = npus * (model_of(spec).worker_gib * GIB + model_bytes(spec))
    return -(-(workers + state_bytes(spec)) // GIB) + shm_gib(npus)


def disk_gib(
    spec: Spec, npus: int, *, data_gib: int = 10, shapes: Mapping[Shape, int] | None = None
) -> int:
    """Return the ephemeral storage a pod needs.

    The downloaded pipeline, and for a single file the folder that is made of it; two checkpoints,
    one being uploaded while the next is written; the trained weights exported once more; the
    pictures; data set and latents (the reference's are below 1 GiB); and for each worker 2 GiB of
    compiled graphs and 1 GiB of logs.
    """
    models = model_bytes(spec) * (2 if spec.model.endswith(".safetensors") else 1)
    need = models + 2 * state_bytes(spec) + data_gib * GIB + 3 * GIB * npus
    if spec.kind == "train":
        need += 4 * trained(spec)
    else:
        need += picture_bytes(spec, shapes)
    return -(-need // GIB)


def grace_seconds(spec: Spec, upload_mib_per_second: int) -> int:
    """Return how long a pod that is told to stop may take, a minute at least.

    End the step (1 to 2 s) and the processes around it: 30 s. Write the state and read it again for
    its digests, at 200 MiB/s together, what one disk without a cache and SHA-256 without hardware
    give. Upload it.
    """
    state = state_bytes(spec) / MIB
    return max(60, 30 + round(state / 200 + state / upload_mib_per_second))
