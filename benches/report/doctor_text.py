"""`edgesmith doctor` in words. Plain text: the library that draws tables may be what is missing."""

from collections.abc import Iterator

from .doctor import Diagnosis, Package


def lines(found: Diagnosis) -> Iterator[str]:
    """The diagnosis, a line at a time, what is missing last."""
    yield f"Python {found.python} on {found.system}"
    yield f"{found.cpu}: {', '.join(found.cpu_features) or 'no instruction set that matters is reported'}"
    yield f"  {found.cpu_consequence}"
    limit = "" if found.core_limit is None else f", limited to the time of {found.core_limit:g}"
    yield f"{found.cores} core{'' if found.cores == 1 else 's'}{limit}; {found.memory_bytes / 2**30:.1f} GiB of memory"
    built = f"torch is built with CUDA {found.torch_cuda}" if found.torch_cuda else "torch is built without CUDA"
    yield f"CUDA device: {found.cuda_device or f'none: {found.cuda_reason}'}; {built}"
    yield f"C++ compiler: {found.compiler or 'none; torch.compile needs one: install g++ or set CXX'}"
    for title, required in (("Needed", True), ("Optional", False)):
        yield ""
        yield f"{title}:"
        packages = [package for package in found.packages if package.required == required]
        width = max((len(package.name) for package in packages), default=0)
        for package in packages:
            yield f"  {package.name:<{width}}  {_state(package)}"
    yield ""
    yield "Targets:" if found.targets else "Targets: not looked at while something needed is missing"
    width = max((len(target.name) for target in found.targets), default=0)
    for target in found.targets:
        reason = f": {target.reason}" if target.reason else ""
        yield f"  {target.name:<{width}}  {target.state}{reason}{_then(target.command)}"


def _state(package: Package) -> str:
    if package.state == "missing":
        return f"missing{_then(package.command)}"
    detail = f" ({package.detail})" if package.detail else ""
    return f"{package.version}{detail}{_then(package.command)}"


def _then(command: str) -> str:
    return f"; {command}" if command else ""
