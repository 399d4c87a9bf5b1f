"""Owns the flags that several verbs share, and which of them belong to the target or the spec.

Imported for `--help` and completion: must not load pydantic, yaml or a client.
"""

# No `from __future__ import annotations`: Typer would evaluate some 80 texts at each start.

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from launcher import durations
from launcher.errors import Usage

if TYPE_CHECKING:
    from launcher.settings import Settings

# Rich costs 2.5 times the start-up, and frames would break the one-line errors.
PLAIN: dict[str, Any] = {"rich_markup_mode": None, "no_args_is_help": True}
TARGET = (
    "backend", "context", "namespace", "store", "image", "server",
    "queue", "queue_engine", "priority_class",
)  # fmt: skip
"""Flags that are fields of Target."""
SPEC = {
    "train": (
        "method",
        "precision",
        "model",
        "vae",
        "data",
        "steps",
        "learning_rate",
        "batch_size",
        "resolution",
        "lora_rank",
        "save_every",
        "seed",
        "fork",
    ),
    "infer": ("precision", "model", "images", "steps", "guidance", "scheduler", "only", "seed"),
}
"""Flags that are keys of a spec, by kind; the rest are turned into keys by the verb."""

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")]

Backend = Annotated[
    Literal["kubernetes", "local"] | None,
    typer.Option(help="Where runs go: a cluster, or this machine's CPU."),
]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of the Jobs.")]
Store = Annotated[
    str | None, typer.Option(metavar="URL", help="Root of the object store, or a folder.")
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="launcher.toml to read, instead of the nearest one."),
]
Image = Annotated[str | None, typer.Option(help="Image of the jobs, with tag or digest.")]
Server = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="Server type, as the node label accelerator-type says it."),
]

Method = Literal["vanilla", "lora", "lora-te"]
Scheduler = Annotated[
    Literal[
        "DDIM", "DDIMParallel", "LMS", "DPMSolverSinglestep", "DPMSolverMultistep",
        "EulerDiscrete", "EulerAncestral",
    ] | None,
    typer.Option(help="Sampler; the model's own when left out."),
]  # fmt: skip
Precision = Annotated[
    Literal["fp16", "bf16", "fp32"] | None,
    typer.Option(help="Type of weights and activations."),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Pipeline folder, .safetensors file, s3:// address, hub id, or tiny, which ships."
    ),
]
Vae = Annotated[
    str | None, typer.Option(help="VAE in place of the model's: its folder, file or hub id.")
]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", "--lr", help="Highest learning rate.")
]
BatchSize = Annotated[int | None, typer.Option(help="Pictures per NPU and step.")]
Rank = Annotated[
    int | None, typer.Option("--rank", help="Rank of the LoRA; its alpha stays as it is.")
]
SaveEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints.")]
Fork = Annotated[
    bool | None,
    typer.Option("--fork", help="Go on with the run of that --name, its values changed."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Spec = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file of spec keys; flags win over it.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the spec; repeatable."),
]

Name = Annotated[
    str | None, typer.Option(metavar="RUN", help="Name of the run; made up when left out.")
]
Npus = Annotated[int, typer.Option(help="NPUs per node; workers with --backend local.")]
Nodes = Annotated[int, typer.Option(help="Nodes.")]
Queue = Annotated[str | None, typer.Option(help="Queue that the run waits in.")]
QueueEngine = Annotated[
    Literal["kueue", "volcano"] | None, typer.Option(help="Whose queue that is.")
]
Priority = Annotated[
    str | None, typer.Option("--priority", metavar="CLASS", help="PriorityClass of the pods.")
]
MaxDuration = Annotated[
    str | None, typer.Option(metavar="TIME", help="Stop the run after this time, such as 8h.")
]
Ttl = Annotated[
    str | None, typer.Option(metavar="TIME", help="Keep the finished Job this long, such as 7d.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be submitted; needs no cluster.")
]
Form = Annotated[Literal["yaml", "json"], typer.Option("-o", help="Form of --dry-run's output.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the log; end with 70 if the run fails.")]
Idempotent = Annotated[
    bool,
    typer.Option("--idempotent", help="Take the run of that --name if its spec is the same."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


CONFIGURED = "\0configured"
"""Value of --store where it is given without one."""


class StoreAlone(typer.core.TyperCommand):
    """A command whose --store may stand without a URL; Typer has no such options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give --store a value that no person types where none follows."""
        given = []
        for index, argument in enumerate(args):
            given.append(argument)
            if argument == "--store" and (args[index + 1 :] or ["-"])[0].startswith("-"):
                given.append(CONFIGURED)
        parsed: list[str] = super().parse_args(ctx, given)
        return parsed


def settings(params: Mapping[str, Any]) -> "Settings":
    """Return the target that the flags of a verb lead to.

    Raises:
        Usage: --store is empty, as it is when a script's variable is not set.
        NotFound, Misconfigured: as `launcher.settings.load` does.
    """
    from launcher.settings import load

    if params.get("store") == "":
        raise Usage("--store '': is empty", "--store names the place of the runs; or leave it out")
    given = {key: params[key] for key in TARGET if params.get(key) is not None}
    flags = {key: value for key, value in given.items() if value != CONFIGURED}
    return load(flags, config=params.get("config"))


def amounts(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many and how long: what `plan` wants to know besides spec and target.

    Raises:
        Usage: --max-duration or --ttl is no duration.
    """
    found = {"npus": params["npus"], "nodes": params["nodes"]}
    if (text := params.get("max_duration")) is not None:
        found["max_seconds"] = durations.seconds(text, "--max-duration")
    if (text := params.get("ttl")) is not None:
        found["ttl_seconds"] = durations.seconds(text, "--ttl", least=0)
    return found


def spec_flags(params: Mapping[str, Any], kind: str) -> dict[str, object]:
    """Return the keys of the spec that were given as flags of the same name."""
    return {key: params[key] for key in SPEC[kind] if params.get(key) is not None}
