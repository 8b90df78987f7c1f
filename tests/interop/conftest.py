"""A cache for the code of exported repositories that tests load in this process."""

import sys

import pytest


@pytest.fixture(scope="session")
def code_cache(tmp_path_factory):
    """One folder for all tests: Python remembers the first one that it imported such code from."""
    folder = tmp_path_factory.mktemp("modules")
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
        patch.syspath_prepend(str(folder))
        yield folder
