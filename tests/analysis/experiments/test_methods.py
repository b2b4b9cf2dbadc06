import pytest

from analysis.experiments.methods import METHODS, configuration, label, method_of, optimizer_class, rule_of


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_makes_its_rule_and_names_its_optimizer(name):
    options = {"iters": 2} if METHODS[name].first else {}
    config = configuration(name, lr=0.1, momentum=0.9, reg=0.01, **options)
    rule = rule_of(config)
    assert type(rule) is METHODS[name].rule and rule.lr == 0.1
    assert {key: getattr(rule, key) for key in config if key != "method"} == {
        key: value for key, value in config.items() if key != "method"
    }
    assert label(config) == METHODS[name].label + (" ×2" if options else "")


@pytest.mark.parametrize("name", METHODS)
def test_pytorchs_optimizer_is_that_of_the_rule(name):
    pytest.importorskip("torch")
    made, method = optimizer_class({"method": name}), METHODS[name]
    assert made.__module__.startswith("torch." if method.plain else "lorsum.torch.")
    if not method.plain:
        assert made.Rule is method.rule


def test_the_factor_that_is_updated_first_is_the_published_codes():
    config = configuration("oplora", lr=0.1, iters=1)
    assert config["first"] == rule_of(config).first == "V"
    assert method_of(config).family == "OPLoRA"
