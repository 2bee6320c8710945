# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Features that read a part of a column, and logs without a token type: read alike by preparation and extractor."""

import json

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from synthetic_log import TEST, VALIDATION, check_rows, load_extractor, make_log, read_rows

from modeling_mcm.data import EventSchema, PreparedData, read_schema
from modeling_mcm.feature_extraction_mcm import MCMFeatureExtractor
from modeling_mcm.hub.folder import rare_values
from modeling_mcm.preparation import prepare

FILM_SCHEMA = yaml.safe_load("""
customer: user
time: at
features:
- {name: item}
- {name: genres, separator: '|', max_items: 3}
- {name: path, separator: ., levels: [department, aisle, shelf]}
- {name: hour, kind: hour}
profile: [{name: likes, max_items: 2}, {name: home, separator: /, levels: [country, town]}]
tasks: [item, genres, aisle]
min_history: 3
""")
FILM_SCHEMA["cutoffs"] = {"validation": VALIDATION.isoformat(), "test": TEST.isoformat()}
ITEM, GENRES, LEVELS, _ = FILM_SCHEMA["features"]
GENRE_TEXTS = ["drama", "comedy", "film.noir", "", "sci-fi", "0.5", "Épique"]
PATH_TEXTS = ["a", "b", "", "a b", "é"]


def schema_with(**changes):
    return EventSchema.from_dict({**FILM_SCHEMA, **changes})


def make_films(seed=0):
    """The small log with lists of genres and paths of categories in each event, also empty and damaged ones."""
    generator = np.random.default_rng(seed)
    log = make_log(seed=seed)[["user", "at", "item"]]
    lengths = generator.integers(0, 6, (2, len(log)))
    genres = ["|".join(generator.choice(GENRE_TEXTS, length)) for length in lengths[0]]
    paths = [".".join(generator.choice(PATH_TEXTS, length)) for length in lengths[1]]
    log = log.assign(genres=genres, path=paths)
    gap = generator.random((2, len(log))) < 0.1
    log["genres"], log["path"] = log["genres"].mask(gap[0]), log["path"].mask(gap[1])
    late = log["at"] >= VALIDATION  # values that training has not seen
    log.loc[late & (generator.random(len(log)) < 0.3), "genres"] = "new|drama|newer"
    return log


PEOPLE = pa.table(
    {
        "user": pa.array(range(8)),
        "likes": pa.array([[3, 4], [4], [], None, [None, 3, 3], [4, 3, 5], [5], [9]]),
        "home": ["de/ulm", "de", "fr/ulm", None, "/ulm", "de/", "", "fr/ulm/x"],
    }
)
PROFILES = {str(row.pop("user")): row for row in PEOPLE.to_pylist()}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The folder in which the films are prepared, as out/."""
    folder = tmp_path_factory.mktemp("films")
    prepare(make_films(), schema_with(), folder / "out", profile=PEOPLE)
    return folder


@pytest.fixture
def extractor(films):
    return load_extractor(films)


def test_values_are_ordered_by_how_common_they_are_in_training(extractor):
    log, vocabularies = make_films(), extractor.vocabularies
    training = log[(log["at"] < VALIDATION) & log["genres"].notna()]
    texts = pd.Series([text for genres in training["genres"] for text in {*genres.split("|")} - {""}])
    counts = texts.value_counts()
    in_order = sorted(counts.index, key=lambda text: (-counts[text], text.encode()))
    assert vocabularies["genres"][: len(in_order)] == in_order
    assert "new" in vocabularies["genres"][len(in_order) :]  # after the cutoff
    assert vocabularies["genres"] == vocabularies["genres_2"] == vocabularies["genres_3"]
    first, second, third, *_ = vocabularies["genres"]
    events = {"at": ["2024-01-01"] * 2, "genres": [f"never|{third}||{first}|{second}|{third}", f"never|{second}"]}
    row = extractor.encode({"events": events})
    found = [[row[f"feature_{name}"][place] for name in ("genres", "genres_2", "genres_3")] for place in (0, 1)]
    assert sorted(found) == [[2, 3, 4], [3, 1, 0]]


def test_a_level_is_the_whole_path_up_to_it(tmp_path):
    log = make_films().assign(path="tools.kitchen.knife")
    log.loc[::2, "path"] = "food.kitchen"
    log.loc[::7, "path"] = "food..knife"
    prepare(log, schema_with(), tmp_path / "out", profile=PEOPLE)
    vocabularies = load_extractor(tmp_path).vocabularies
    assert set(vocabularies["department"]) == {"food", "tools"}
    assert set(vocabularies["aisle"]) == {"food.kitchen", "tools.kitchen"}
    assert vocabularies["shelf"] == ["tools.kitchen.knife"]
    columns = [f"feature_{name}" for name in ("department", "aisle", "shelf")]
    rows = read_rows(tmp_path).values()
    seen = {tuple(np.sign(ids)) for row in rows for ids in zip(*(row[name] for name in columns), strict=True)}
    assert seen == {(1, 1, 1), (1, 1, 0), (1, 0, 0)}


def test_a_log_without_a_token_type_has_one(tmp_path):
    log = make_films().assign(session=make_log()["session"])
    schema = schema_with(end_of_visit="end", visit="session")
    assert [*schema.specs][:3] == ["token_type", "item", "genres"]
    prepare(log, schema, tmp_path / "out", profile=PEOPLE)
    extractor = load_extractor(tmp_path)
    assert extractor.vocabularies["token_type"] == ["event", "history_start", "end"]
    rows = check_rows(tmp_path, log, PROFILES)
    learned = PreparedData(tmp_path / "out").rows["feature_genres_3"]
    assert {0, 1} < set(np.concatenate([np.array(ids) for ids in learned]))  # missing, unknown, known
    assert rows["4"]["profile_likes"] >= 2 and rows["4"]["profile_likes_2"] == 0
    assert rows["5"]["profile_likes"] >= 2 and rows["5"]["profile_likes_2"] >= 2
    assert [rows[user]["profile_town"] > 1 for user in "0124567"] == [True, False, True, False, False, False, True]
    assert set(np.concatenate([row["feature_token_type"] for row in rows.values()])) == {2, 4}
    inputs = extractor({"events": [{"at": "2024-01-01", "item": 3}]}, return_tensors="np")["input_ids"]
    assert inputs[0, :, 0].tolist() == [3, 2, 4]


def test_what_is_saved_reads_back(films, extractor, tmp_path):
    log, schema = make_films(), schema_with()
    assert EventSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    again = read_schema(extractor)
    prepare(log, again, tmp_path / "again", profile=PEOPLE, feature_extractor=extractor)
    rows, others = (read_rows(*place).values() for place in ((films,), (tmp_path, "again")))
    assert [row["feature_genres_2"] for row in rows] == [row["feature_genres_2"] for row in others]
    for changes, message in (
        ({"features": [ITEM, GENRES | {"separator": ";"}, LEVELS]}, "features are not"),
        ({"token_type": "item", "features": [{"name": "token_type", "column": "item"}, GENRES]}, "`token_type` is"),
    ):
        other = schema_with(**changes, tasks=["genres"])
        with pytest.raises(ValueError, match=message):
            prepare(log, other, tmp_path / "other", profile=PEOPLE, feature_extractor=extractor)


def test_shared_vocabularies_stay_the_same(extractor, tmp_path):
    extractor.vocabularies["genres"].append("western")
    with pytest.raises(ValueError, match="'genres' and 'genres_2' share the values of column 'genres'.*each"):
        extractor.save_pretrained(tmp_path / "saved")
    extractor.vocabularies["genres_2"].append("western")
    extractor.vocabularies["genres_3"].append("western")
    extractor.save_pretrained(tmp_path / "saved")
    again = MCMFeatureExtractor.from_pretrained(tmp_path / "saved")
    row = again.encode({"events": [{"at": "2024-01-01", "genres": "drama|western"}]})
    assert row["feature_genres_2"][0] == 1 + len(again.vocabularies["genres"])


def test_raw_values_of_another_type_are_refused(extractor):
    for event, message in (
        ({"genres": ["drama"]}, "column 'genres': found .'drama'. .list., expected text"),
        ({"path": ["a"]}, "column 'path'.*expected text"),
        ({"token_type": "event"}, "unknown 'token_type'"),
    ):
        with pytest.raises(ValueError, match=message):
            extractor.encode({"events": [{"at": "2024-01-01", **event}]})
    with pytest.raises(ValueError, match="profile: column 'likes': found 'drama' .str., expected a list"):
        extractor.encode({"events": [], "profile": {"likes": "drama"}})


def test_a_value_has_its_customers_whatever_its_place(films, extractor):
    log = make_films()
    rows = datasets.Dataset.from_parquet([str(path) for path in (films / "out").glob("customers-*")])
    training = log[(log["at"] < VALIDATION) & log["genres"].notna()]
    for least in range(len(rows) + 2):
        rare = rare_values(rows, extractor, least)
        assert rare["genres"] == rare["genres_3"]
        for text in extractor.vocabularies["genres"][:3]:  # always among an event's three
            places = training[training["genres"].map(lambda genres, text=text: text in genres.split("|"))]
            assert (text in rare["genres"]) == (places["user"].nunique() < least)
