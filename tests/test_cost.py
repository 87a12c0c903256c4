"""What a profile would cost: against counts by hand and what the notebooks print, without a connection."""

import re
import socket

import pytest
from hypothesis import given, strategies as st

from layerswap.errors import UserError
from layerswap.run import cost
from layerswap.run.__main__ import main
from layerswap.run.profiles import Project, load_profile, read_notebook


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def settings_of(profile):
    return load_profile(Project(), profile)


def printed_maps(name):
    """How many layer maps a notebook's stored outputs show."""
    outputs = [out for cell in read_notebook(Project(), name)["cells"] for out in cell.get("outputs", ())]
    return sum(len(re.findall(r"[LMx]{4,}$", "".join(out.get("text", "")), re.MULTILINE)) for out in outputs)


def test_answers_are_those_of_the_notebooks():
    """By hand, from what the notebooks print; a condition that is there under another name is answered once."""
    settings = settings_of("ci")
    for p in settings.values():
        p.update(
            {"n_problems": 10} | ({"n_map": 1} if "n_map" in p else {}) | ({"n_sweep": 10} if "n_sweep" in p else {})
        )
    answers = cost.count_answers(settings, 8)
    assert answers["01_experts"] == (2 + 3) * 10, "base and math expert in English; all three in Swahili"
    assert answers["02_swap"] == 3 * 10
    n_repeated = 3  # both, width 1 and the two averages of the non-layer parameters are the zone kept and removed
    assert answers["03_transition"] == (printed_maps("03_transition") - n_repeated) * 10
    n_map = 2 * 2 + 8 - 2 + 1  # of the map and each layer alone (0 and 7 are the map's ends); the non-layer one
    assert answers["04_top_bottom"] == printed_maps("04_top_bottom") * 10 + n_map, "other problems, answered apart"
    n_widths = len(settings["05_mgsm"]["candidate_widths"]) ** 2 * len(settings["05_mgsm"]["non_layer_weights"])
    assert answers["05_mgsm"] == 14 * 10 + (n_widths + 8) * settings["05_mgsm"]["n_validation"]


@pytest.mark.parametrize("pairs", ["2x1", "1x2", "0x1", "1", "axb", "1x1x1", ""])
def test_pairs_that_are_not_there(pairs):
    settings = settings_of("ci")
    settings["05_mgsm"]["pairs"] = pairs
    with pytest.raises(UserError, match="expected numbers of math and of language experts such as 1x1"):
        cost.count_answers(settings, 8)


def test_validation_problems_that_are_tested():
    settings = settings_of("llama31-8b")
    settings["05_mgsm"]["n_problems"] = 250
    with pytest.raises(
        UserError, match="05_mgsm: n_problems is 250, but the problems after the first 200 are validation problems"
    ):
        cost.cost_report("x", settings)
    settings["05_mgsm"]["n_validation"] = 0
    assert cost.cost_report("x", settings)
    settings["05_mgsm"] |= {"n_problems": 200, "n_validation": 51}
    with pytest.raises(UserError, match="05_mgsm: n_validation is 51, but there are 50 such problems"):
        cost.cost_report("x", settings)


@pytest.mark.parametrize(
    ("notebook", "parameter", "value", "message"),
    [
        ("01_experts", "languages", ["sw", "sw"], r"languages is \['sw', 'sw'\], expected one or more, each another"),
        ("01_experts", "languages", [], r"languages is \[\], expected one or more"),
        ("02_swap", "language", "te", "02_swap: language 'te' has no expert, 01_experts has sw"),
    ],
)
def test_what_a_later_notebook_would_refuse_is_refused_before_the_first_one(notebook, parameter, value, message):
    settings = settings_of("ci")
    settings[notebook][parameter] = value
    with pytest.raises(UserError, match=message):
        cost.check_profile(settings)


def test_baselines_cost_too():
    settings = settings_of("lab-3x3")
    text = "\n".join(cost.cost_report("lab-3x3", settings))
    assert "3 joint sw expert(s), all weights: 220 steps" in text
    assert "3 frozen math expert(s), all weights: 120 steps" in text
    settings["01_experts"]["baselines"] = []
    assert "joint" not in "\n".join(cost.cost_report("lab-3x3", settings))
    settings["01_experts"]["baselines"] = ["sft"]
    with pytest.raises(UserError, match="baselines has 'sft', expected of joint, frozen"):
        cost.cost_report("lab-3x3", settings)


def test_a_model_that_is_not_here():
    """8 billion weights: 16 bytes each to train, 4 to keep, 2 to fetch; 15 experts; 6 operations a weight and token."""
    settings = settings_of("llama31-8b")
    settings["01_experts"]["baselines"] = []
    text = "\n".join(cost.cost_report("llama31-8b", settings))
    assert "8,000.0 million weights (by its name)" in text
    assert "1 model(s) to fetch from the hub, about 16.0 GB" in text
    assert text.count("3 sw expert(s), all weights: 470 steps of 64 rows, at most 30.8 M tokens") == 1
    assert "memory 128.0 GB, over 8 processes" in text
    seconds = 15 * 6 * 8e9 * 470 * 64 * 1024 / 4e14 / 8
    assert f" 8 GPU(s): training {seconds / 60:.0f} minutes" in text
    assert f" 1 GPU(s): training {8 * seconds / 3600:.0f} hours" in text
    assert f"64 GPU(s): training {seconds / 15 * 2 / 60:.0f} minutes" in text, "8 at once, 15 of them"
    assert "memory 52.8 GB a worker (two experts" in text
    assert f"in all     disk {16 + 15 * 32 + 2 * 128 + 32:.1f} GB" in text


def test_experts_by_reference_are_not_trained():
    settings = settings_of("llama31-8b")
    settings["01_experts"] |= {"seeds": [1], "math_experts": ["me/math-8B@v1"], "language_experts": ["a/b@1"] * 4}
    settings["01_experts"]["baselines"] = []
    for p in settings.values():
        p.update({"pairs": "1x1"} if "pairs" in p else {})
    text = "\n".join(cost.cost_report("x", settings))
    assert "train" not in text and "expert me/math-8B@v1" in text
    assert "6 model(s) to fetch" in text


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.integers(1, 9))
def test_a_list_schedule_lies_between_its_bounds(lengths, n_workers):
    """Graham 1969: at most 2 - 1/n times the best, which is no less than the mean load and the longest piece."""
    time, least = cost.makespan(lengths, n_workers), max(sum(lengths) / n_workers, max(lengths))
    assert least - 1e-9 <= time <= least * (2 - 1 / n_workers) + 1e-9


def test_pieces_go_to_the_worker_that_is_free_first():
    assert cost.makespan([4, 1, 1, 1, 2], 2) == 5 and cost.makespan([4, 1, 1, 1, 2], 1) == 9


@pytest.mark.parametrize(("profile", "minutes"), [("lab-3x3", 90)])
def test_estimates_lie_within_a_factor_of_two_of_what_was_measured(profile, minutes):
    """docs/profiles.md: core minutes, on an AMD EPYC."""
    settings = settings_of(profile)
    (line,) = [line for line in cost.cost_report(profile, settings) if " 1 worker(s)" in line]
    value, unit = re.search(r"together ([\d.]+) (minutes|hours)", line).groups()
    estimate = float(value) * {"minutes": 1, "hours": 60}[unit]
    assert minutes / 2 <= estimate <= 2 * minutes


def test_lora_costs_less():
    settings = settings_of("llama31-8b")
    settings["01_experts"]["fine_tuning"] |= {"lora_rank": 64, "launch": ""}
    text = "\n".join(cost.cost_report("x", settings))
    assert "LoRA of rank 64" in text and "memory 32.0 GB, and activations" in text


def test_a_model_that_is_here():
    text = "\n".join(cost.cost_report("lab", settings_of("lab")))
    assert "0.7 million weights (by its files)" in text and "0 model(s) to fetch" in text


def test_a_name_without_a_size():
    """What is counted is said, what depends on the size is not known; a name that is no model's is refused."""
    settings = settings_of("ci")
    settings["01_experts"] |= {"base": "owner/base@revision"}
    text = "\n".join(cost.cost_report("x", settings))
    assert "? million weights (owner/base@revision is not here yet" in text and "nan" not in text
    assert "disk ? GB;" in text and "01_experts: at most 100 answers" in text
    settings["01_experts"] |= {"base": "no/such/folder"}
    with pytest.raises(UserError, match="its name does not say how many weights"):
        cost.cost_report("x", settings)


def write_mgsm(folder, *languages):
    """A folder like LAYERSWAP_DATA with MGSM's files of these languages, two problems each."""
    (folder / "mgsm").mkdir(parents=True)
    for language in languages:
        (folder / "mgsm" / f"mgsm_{language}.tsv").write_text("1 + 1?\t2\n2 + 2?\t4\n", encoding="utf-8")


@pytest.fixture
def own_experts(monkeypatch, tmp_path):
    """README's profile, in German, and a data folder with nothing but MGSM."""
    write_mgsm(tmp_path / "data", "en", "de")
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path / "data"))
    settings = settings_of("ci")
    for parameters in settings.values():
        parameters.update({"style": "native_cot"} | ({"languages": ["de"]} if "languages" in parameters else {}))
    settings["01_experts"] |= {
        "source": "local", "base": "owner/base@revision", "math_experts": ["owner/math@revision"],
        "language_experts": ["/models/german-lora"], "baselines": [],
    }  # fmt: skip
    return settings


def test_own_experts_need_no_training_text(own_experts):
    text = "\n".join(cost.cost_report("mine", own_experts))
    assert "train" not in text and "expert /models/german-lora (no such folder here)" in text


def test_languages_and_data_are_looked_for(own_experts, monkeypatch, tmp_path):
    def refusal(match, **changes):
        settings = {name: dict(parameters) for name, parameters in own_experts.items()}
        for parameters in settings.values():
            parameters |= {key: value for key, value in changes.items() if key in parameters}
        with pytest.raises(UserError, match=match):
            cost.cost_report("mine", settings)

    refusal("language 'xx' is not in MGSM, expected one of bn, de", languages=["xx"])
    refusal(r"found 0 files \*_fr.tsv", languages=["fr"])
    refusal("no training text for language 'de'", language_experts=[])
    refusal("gsm8k", math_experts=[])
    refusal("gsm8k", baselines=["joint"])
    refusal("language 'xx' is not in the lab", source="lab", style="lab", languages=["xx"])
    own_experts["04_top_bottom"] |= {"languages": ["fr"]}
    refusal("04_top_bottom: language 'fr' has no expert, 01_experts has de")
    own_experts["04_top_bottom"] |= {"languages": ["de"]}
    monkeypatch.setenv("LAYERSWAP_DATA", str(tmp_path / "none"))
    refusal("LAYERSWAP_DATA=.*none: no such folder")


def test_a_data_folder_that_is_not_set(own_experts, monkeypatch):
    monkeypatch.delenv("LAYERSWAP_DATA")
    assert "LAYERSWAP_DATA is not set" in "\n".join(cost.cost_report("mine", own_experts))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7, "7 seconds"), (119, "119 seconds"), (3600, "60 minutes"), (86400, "24 hours"), (1e6, "12 days")],
)  # fmt: skip
def test_duration(seconds, text):
    assert cost.format_duration(seconds) == text


def test_the_command(capsys):
    assert main(["cost", "--profile", "llama31-8b"]) == 0
    assert "nothing is fetched or run" in capsys.readouterr().out
    assert main(["cost", "--profile", "none"]) == 2
    assert "expected one of" in capsys.readouterr().err
