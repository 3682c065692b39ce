"""Which photographs and prompts are asked for."""

from types import SimpleNamespace

from bolid_training.evaluate.known import identify
from bolid_training.evaluate.protocol import further_photographs, trials, true_prompt


def test_trials_take_one_photograph_a_person_and_another_place(photographs):
    people = photographs()
    chosen = trials(people, 8)
    assert len({trial.identity for trial in chosen}) == len(chosen) == 8
    assert all(people.photos[trial.index] for trial in chosen)
    assert all(trial.place != people.metadata[trial.index]["scene"] for trial in chosen)
    assert {trial.prompt for trial in chosen} == {"walking on a beach", "walking in a desert"}
    assert chosen == trials(people, 8)


def test_trials_ask_for_the_light_of_the_photographs(photographs):
    people = photographs(time="fog")
    assert {trial.prompt[-10:] for trial in trials(people, 8)} == {"in the fog"}
    assert true_prompt(people, 0) == "walking on a beach in the fog"


def test_more_pictures_a_person_are_rounds_of_other_references_and_prompts(photographs):
    people = photographs()
    chosen = trials(people, 8, pictures=3)
    assert [trial.round for trial in chosen] == [0] * 8 + [1] * 8 + [2] * 8
    assert chosen[:8] == trials(people, 8)
    assert [trial.identity for trial in chosen] == 3 * [trial.identity for trial in chosen[:8]]
    assert all(people.photos[trial.index] for trial in chosen)
    several = [trial.identity for trial in chosen if people.photos[people.identity == trial.identity].sum() > 2]
    assert several
    assert all(len({trial.index for trial in chosen if trial.identity == identity}) > 1 for identity in several)


def test_identity_is_compared_with_another_photograph_of_the_person(photographs):
    people = photographs()
    chosen = trials(people, 8, pictures=3)
    assert not {trial.other for trial in chosen} & {trial.index for trial in chosen}
    assert all(people.identity[trial.other] == trial.identity for trial in chosen)
    assert all(people.photos[trial.other] for trial in chosen)


def test_further_references_are_neither_the_first_nor_the_one_it_is_compared_with(photographs):
    people = photographs()
    shown = []

    class Viewer:
        def identify(self, images):
            shown.append(images)
            return SimpleNamespace(images=images)

    chosen = trials(people, 8)
    identify(Viewer(), people, chosen, references=3)
    sets = [images for images in shown if isinstance(images, list)]
    photos = [int(people.photos[people.identity == trial.identity].sum()) for trial in chosen]
    assert sorted(len(images) for images in sets) == sorted(min(3, count - 1) for count in photos if count > 2)
    for trial in chosen:
        more = further_photographs(people, trial)
        assert not {trial.index, trial.other} & set(more)
        assert all(people.photos[more])
        assert all(people.identity[more] == trial.identity)
