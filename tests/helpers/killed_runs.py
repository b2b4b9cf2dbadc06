"""Runs of a study that are killed in the middle and started again."""

import pytest


def resumed(monkeypatch, module, config, checkpoints):
    """The results of a module's ``run`` of three epochs, killed as it saves the second one and then run again."""
    save = module._save

    def killed_in_the_second_epoch(path, *trained_and_results):
        if len(trained_and_results[-1]["loss"]) == 2:
            raise KeyboardInterrupt
        save(path, *trained_and_results)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_save", killed_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            module.run(config, checkpoints=checkpoints)
    return module.run(config, checkpoints=checkpoints)
