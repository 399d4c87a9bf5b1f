"""What only a kubelet finds out, in its own words and containerd's: scene -> status or event."""

from __future__ import annotations

from stagehand import IMAGE, ended, waiting

MISSING = "registry.example/jobs:nope"
PULL = 'Back-off pulling image "{0}": ErrImagePull: rpc error: code = {1} desc = failed to pull and'
PULL += ' unpack image "{0}": failed to resolve reference "{0}": {2}'
REASONS = {
    "image-not-found": waiting(
        "ImagePullBackOff", PULL.format(MISSING, "NotFound", f"{MISSING}: not found"), MISSING
    ),
    "image-unauthorized": waiting(
        "ErrImagePull",
        PULL.format(
            IMAGE, "Unknown",
            "unexpected status from HEAD request to https://registry.example/v2/jobs/manifests/1:"
            " 401 Unauthorized",
        ),
    ),
    "image-hidden": waiting(
        "ImagePullBackOff",
        PULL.format(
            IMAGE, "Unknown",
            "pull access denied, repository does not exist or may require authorization: server"
            " message: insufficient_scope: authorization failed",
        ),
    ),
    "image-no-host": waiting(
        "ImagePullBackOff",
        PULL.format(
            IMAGE, "Unknown",
            'failed to do request: Head "https://registry.example/v2/jobs/manifests/1": dial tcp:'
            " lookup registry.example on 10.96.0.10:53: no such host",
        ),
    ),
    "image-no-answer": waiting(
        "ImagePullBackOff",
        PULL.format(
            IMAGE, "Unknown",
            'failed to do request: Head "https://registry.example/v2/jobs/manifests/1": dial tcp'
            " 192.0.2.1:443: i/o timeout",
        ),
    ),
    "image-architecture": waiting(
        "ErrImagePull",
        PULL.format(IMAGE, "NotFound", "no match for platform in manifest: not found"),
    ),
    "image-name": waiting(
        "InvalidImageName",
        f'Failed to apply default image tag "{IMAGE}:1": couldn\'t parse image name'
        f' "{IMAGE}:1": invalid reference format',
    ),
    "secret-missing": waiting("CreateContainerConfigError", 'secret "store-keys" not found'),
    "secret-key-missing": waiting(
        "CreateContainerConfigError", "couldn't find key HF_TOKEN in Secret team/hub-token"
    ),
    "root": waiting(
        "CreateContainerConfigError",
        "container has runAsNonRoot and image will run as root (pod: \"x\", container: main)",
    ),
    "no-program": waiting(
        "RunContainerError",
        "failed to create containerd task: failed to create shim task: OCI runtime create failed:"
        ' runc create failed: unable to start container process: exec: "python": executable file'
        " not found in $PATH",
    ),
    "memory": ended(137, "OOMKilled"),
    "memory-of-a-worker": ended(137, "Error", "137 killed: a worker was killed (SIGKILL)"),
    "memory-and-well": ended(0, "OOMKilled", "0 results are committed and verified"),
    "evicted": {
        **ended(137, "Error"),
        "reason": "Evicted",
        "message": "The node was low on resource: memory. Threshold quantity: 100Mi,"
        " available: 8Mi.",
        "conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
        ],
    },
    "evicted-shm": {
        "phase": "Failed",
        "reason": "Evicted",
        "message": 'Usage of EmptyDir volume "shm" exceeds the limit "4Gi". ',
    },
    "refused-by-node": {
        "phase": "Failed",
        "reason": "UnexpectedAdmissionError",
        "message": "Allocate failed due to rpc error: code = Unknown desc = not get valid pod,"
        " which is unexpected",
    },
}  # fmt: skip
EVENTS = {
    "driver-missing": (
        "FailedMount",
        'MountVolume.SetUp failed for volume "driver-lib64" : hostPath type check failed:'
        " /usr/local/Ascend/driver/lib64 is not a directory",
    ),
    "mount-secret-missing": (
        "FailedMount",
        'MountVolume.SetUp failed for volume "keys" : secret "store-keys" not found',
    ),
    "runtime-missing": (
        "FailedCreatePodSandBox",
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to get sandbox"
        ' runtime: no runtime for "ascend" is configured',
    ),
    "pulling": ("Pulling", f'Pulling image "{IMAGE}"'),
}
ENDS = {
    1: "bug: KeyError: 'unet'",
    65: "bad data: s3://b/pictures/metadata.jsonl: line 3: no file_name",
    69: "unavailable: s3://b/r: no answer for 1800 s",
    70: "diverged: step 12: the loss is nan",
    74: "pictures failed: 2 of 10 pictures could not be made",
    75: "stopped: stopped on request: step 120 is committed",
    78: "bad spec: data: no such data set: YaYaB/onepiece",
    79: "stalled: worker 3: silent for 2703 s, the limit is 2700 s",
    126: "",
    139: "",
}
