//! Endless short stories for children from a seeded grammar, written for this project.
//!
//! They are training text that needs no download, is too large to memorise, and has a known best possible loss. A story
//! has a hero, an animal, a thing with a look, and a place, which stay the same through its 4 to 8 sentences. A model
//! that looks back over sentences can predict them; a model that sees two bytes cannot.
//!
//! To help a small model learn spelling quickly, no word has a double letter (the model would have to count letters),
//! and the values of each choice that a story keeps begin with different letters.
//!
//! Every choice is uniform and visible in the text. So the text's entropy is the sum of the choices' entropies, and
//! [`nats_per_byte`](Stories::nats_per_byte) is exact, not measured.

use crate::random::mt19937::Mt19937;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Lifetime of a slot's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    /// Drawn once per story. The number is an index into [`KEPT`].
    Story(usize),
    /// Drawn again at each use.
    Once,
}

/// A place in a sentence that several words can fill.
struct Slot {
    name: &'static str,
    span: Span,
    values: &'static [&'static str],
}

/// Number of values for each choice that a story keeps: hero, animal, look, thing, place.
const KEPT: [usize; 5] = [8; 5];

const HERO: Span = Span::Story(0);

/// All slots. Heroes alternate between girls and boys, so a slot with two values uses the hero's number modulo 2.
const SLOTS: [Slot; 16] = [
    slot("name", HERO, &["Lily", "Tom", "Kate", "Ben", "Nora", "Max", "Rose", "Sam"]),
    slot("kind", HERO, &["girl", "boy"]),
    slot("he", HERO, &["she", "he"]),
    slot("He", HERO, &["She", "He"]),
    slot("him", HERO, &["her", "him"]),
    slot("his", HERO, &["her", "his"]),
    slot("His", HERO, &["Her", "His"]),
    slot("animal", Span::Story(1), &["dog", "cat", "bird", "frog", "pig", "mouse", "goat", "hen"]),
    slot("look", Span::Story(2), &["red", "blue", "gold", "white", "pink", "silver", "new", "tiny"]),
    slot("thing", Span::Story(3), &["kite", "hat", "drum", "boat", "lamp", "ring", "cup", "map"]),
    slot("place", Span::Story(4), &["park", "garden", "farm", "town", "lake", "river", "cave", "barn"]),
    slot("weather", Span::Once, &["bright", "windy", "cold", "warm"]),
    slot("feeling", Span::Once, &["glad", "sad", "tired", "proud"]),
    slot("food", Span::Once, &["cake", "bread", "soup", "rice"]),
    slot("move", Span::Once, &["ran", "walked", "jumped"]),
    slot("time", Span::Once, &["day", "morning", "night"]),
];

const fn slot(name: &'static str, span: Span, values: &'static [&'static str]) -> Slot {
    Slot { name, span, values }
}

/// First sentence: the hero.
const HEROES: [&str; 4] = [
    "Once there was a young {kind} named {name}.",
    "A kind {kind} named {name} lived in a big house.",
    "{name} was a brave {kind} with a big smile.",
    "Long ago a {kind} named {name} lived by the sea.",
];

/// Second sentence: the animal.
const FRIENDS: [&str; 4] = [
    "{He} had a {animal}, and they played every {time}.",
    "{His} best friend was a clever {animal}.",
    "{He} lived with a {animal} and loved it very much.",
    "{He} liked to play with a soft old {animal}.",
];

/// Third sentence: the thing and the place.
const FINDS: [&str; 4] = [
    "One {weather} day {he} went to the {place} and found a {look} {thing}.",
    "One {time} {name} saw a {look} {thing} near the {place}.",
    "{His} mother gave {him} a {look} {thing} to take to the {place}.",
    "They {move} to the {place} to find a {look} {thing}.",
];

/// Then 0 to [`MOST_EVENTS`] of these, all different.
const EVENTS: [&str; 14] = [
    "{He} showed the {thing} to the {animal}.",
    "The {animal} {move} to the {place} as fast as it could.",
    "{name} gave the {look} {thing} to the {animal}.",
    "The {animal} wanted to play with the {look} {thing}.",
    "\"Come and play with my {thing}!\" said {name}.",
    "They put the {thing} under a big rock.",
    "Then the {animal} hid the {thing} behind the rock.",
    "It was {weather} at the {place} that {time}.",
    "{name} was {feeling}, but the {animal} was {feeling}.",
    "{He} asked the {animal} to help {him} with the {thing}.",
    "They sat down near the {place} and ate the {food}.",
    "The {animal} was not afraid of the {look} {thing}.",
    "\"Can we share the {thing}?\" said the {animal}.",
    "\"I want some {food},\" said the {animal}.",
];

/// Largest number of sentences from [`EVENTS`] in a story. All numbers from 0 on are equally likely.
const MOST_EVENTS: usize = 4;

/// The last sentence.
const ENDS: [&str; 5] = [
    "At night {name} and the {animal} went home.",
    "In the end {he} gave the {look} {thing} to {his} mother.",
    "{name} loved the {animal}, and the {animal} loved {name}.",
    "After that {time} they were the best of friends.",
    "They were {feeling}, and they came back to the {place} every day.",
];

/// Text after a sentence, and text after the last sentence of a story.
const SPACE: &str = " ";
const STORY_END: &str = "\n\n";

/// The generator of stories. The same seed gives the same stories.
#[derive(Debug, Clone)]
pub struct Stories {
    rng: Mt19937,
    nats: f64,
}

impl Stories {
    /// Starts the stories of a seed.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        Self { rng: Mt19937::new(seed), nats: 0.0 }
    }

    /// Returns whole stories, each followed by a blank line, of at least `bytes` bytes of ASCII text in all.
    #[must_use]
    pub fn text(&mut self, bytes: usize) -> String {
        let mut out = String::with_capacity(bytes + 1024);
        while out.len() < bytes {
            self.story(&mut out);
        }
        out
    }

    /// Returns the sum of −ln p over all choices made so far, in nats: the cost of the texts made so far for a reader
    /// who knows the grammar.
    #[must_use]
    pub fn choice_nats(&self) -> f64 {
        self.nats
    }

    /// Returns the exact entropy rate of the text in nats per byte: expected −ln p of a story's choices divided by its
    /// expected length. With byte tokens no model can have a lower mean loss.
    #[must_use]
    pub fn nats_per_byte() -> f64 {
        expected_nats() / expected_bytes()
    }

    /// Returns every word that can occur, in lower case. A word is a maximal run of ASCII letters and apostrophes.
    #[must_use]
    pub fn words() -> BTreeSet<&'static str> {
        static WORDS: LazyLock<BTreeSet<String>> = LazyLock::new(all_words);
        WORDS.iter().map(String::as_str).collect()
    }

    /// Appends one story.
    fn story(&mut self, out: &mut String) {
        let kept = KEPT.map(|values| self.choose(values));
        for templates in [&HEROES[..], &FRIENDS, &FINDS] {
            self.one_of(templates, &kept, out);
            out.push_str(SPACE);
        }
        let mut events = EVENTS;
        for taken in 0..self.choose(MOST_EVENTS + 1) {
            // events already used are at the front
            let pick = taken + self.choose(EVENTS.len() - taken);
            events.swap(taken, pick);
            self.sentence(events[taken], &kept, out);
            out.push_str(SPACE);
        }
        self.one_of(&ENDS, &kept, out);
        out.push_str(STORY_END);
    }

    /// Appends one of several sentences.
    fn one_of(&mut self, templates: &[&'static str], kept: &[usize; KEPT.len()], out: &mut String) {
        let template = templates[self.choose(templates.len())];
        self.sentence(template, kept, out);
    }

    /// Appends one sentence, its slots filled.
    fn sentence(&mut self, template: &'static str, kept: &[usize; KEPT.len()], out: &mut String) {
        for part in parts(template) {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Slot(slot) => {
                    let n = slot.values.len();
                    out.push_str(match slot.span {
                        Span::Story(choice) => slot.values[kept[choice] % n],
                        Span::Once => slot.values[self.choose(n)],
                    });
                }
            }
        }
    }

    /// Draws a number below `n` uniformly and adds its cost to `nats`.
    fn choose(&mut self, n: usize) -> usize {
        self.nats += (n as f64).ln();
        // n is small, so the remainder's bias is below one in 10⁸
        self.rng.next_u32() as usize % n
    }
}

/// A piece of a template.
enum Part {
    Text(&'static str),
    Slot(&'static Slot),
}

/// Cuts a template into text and slots.
fn parts(template: &'static str) -> impl Iterator<Item = Part> {
    static TABLE: [Slot; 16] = SLOTS;
    // the braces alternate, so every second piece is the name of a slot
    template.split(['{', '}']).enumerate().filter_map(|(i, piece)| {
        if i.is_multiple_of(2) {
            Some(Part::Text(piece))
        } else {
            TABLE.iter().find(|s| s.name == piece).map(Part::Slot)
        }
    })
}

/// Returns all templates with the probability that a story contains them.
fn templates() -> impl Iterator<Item = (&'static str, f64)> {
    let one_of = |templates: &'static [&'static str], times: f64| {
        templates.iter().map(move |&template| (template, times / templates.len() as f64))
    };
    // events do not repeat within a story, but each is still equally likely to be in it
    one_of(&HEROES, 1.0)
        .chain(one_of(&FRIENDS, 1.0))
        .chain(one_of(&FINDS, 1.0))
        .chain(one_of(&EVENTS, expected_events()))
        .chain(one_of(&ENDS, 1.0))
}

fn expected_events() -> f64 {
    MOST_EVENTS as f64 / 2.0
}

/// Returns the expected length of a story in bytes. Expectations add up even for dependent choices.
fn expected_bytes() -> f64 {
    let mean = |values: &[&str]| values.iter().map(|v| v.len()).sum::<usize>() as f64 / values.len() as f64;
    let bytes = |template| -> f64 {
        parts(template)
            .map(|part| match part {
                Part::Text(text) => text.len() as f64,
                Part::Slot(slot) => mean(slot.values),
            })
            .sum()
    };
    let sentences: f64 = templates().map(|(template, probability)| probability * bytes(template)).sum();
    sentences + (3.0 + expected_events()) * SPACE.len() as f64 + STORY_END.len() as f64
}

/// Returns the expected sum of −ln p over the choices of a story.
fn expected_nats() -> f64 {
    let ln = |n: usize| (n as f64).ln();
    let kept: f64 = KEPT.iter().map(|&n| ln(n)).sum();
    let fixed = ln(HEROES.len()) + ln(FRIENDS.len()) + ln(FINDS.len()) + ln(ENDS.len());
    let numbers = MOST_EVENTS + 1;
    // event number i is drawn from the events left, in stories that have more than i events
    let events: f64 = (0..MOST_EVENTS).map(|i| (MOST_EVENTS - i) as f64 / numbers as f64 * ln(EVENTS.len() - i)).sum();
    let once = |template| -> f64 {
        parts(template)
            .map(|part| match part {
                Part::Slot(Slot { span: Span::Once, values, .. }) => ln(values.len()),
                _ => 0.0,
            })
            .sum()
    };
    let slots: f64 = templates().map(|(template, probability)| probability * once(template)).sum();
    kept + fixed + ln(numbers) + events + slots
}

fn all_words() -> BTreeSet<String> {
    let texts = templates().flat_map(|(template, _)| parts(template)).flat_map(|part| match part {
        Part::Text(text) => vec![text],
        Part::Slot(slot) => slot.values.to_vec(),
    });
    texts.flat_map(words_of).collect()
}

/// Returns the words of a text in lower case.
fn words_of(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_ascii_alphabetic() && c != '\'').filter(|w| !w.is_empty()).map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_seed_gives_the_same_text() {
        let text = Stories::new(1).text(5000);
        assert_eq!(Stories::new(1).text(5000), text);
        assert_ne!(Stories::new(2).text(5000), text);
        assert!(text.len() >= 5000 && text.len() < 6000 && text.is_ascii());
        assert!(text.ends_with(".\n\n") && !text.contains(['{', '}']));
    }

    #[test]
    fn stories_have_four_to_eight_sentences() {
        let text = Stories::new(3).text(50_000);
        let mut counts = BTreeSet::new();
        for story in text.split_terminator("\n\n") {
            // a quoted sentence ends inside another one and is not counted
            counts.insert(story.matches(". ").count() + 1);
        }
        assert_eq!(counts, (4..=8).collect());
    }

    #[test]
    fn the_words_are_exactly_those_that_occur() {
        let text = Stories::new(4).text(400_000);
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        words_of(&text).for_each(|word| *counts.entry(word).or_default() += 1);
        let words = Stories::words();
        assert!(counts.keys().map(String::as_str).eq(words.iter().copied()));
        assert!((120..=180).contains(&words.len()), "{}", words.len());
        let rarest = counts.iter().min_by_key(|(_, count)| **count);
        assert!(rarest.is_some_and(|(_, &count)| count > 100), "{rarest:?}");
    }

    #[test]
    fn words_are_easy_to_spell() {
        for word in Stories::words() {
            assert!(word.as_bytes().windows(2).all(|pair| pair[0] != pair[1]), "{word}");
        }
        for slot in SLOTS.iter().filter(|slot| slot.values.len() == 8) {
            let first: BTreeSet<u8> = slot.values.iter().map(|value| value.as_bytes()[0]).collect();
            assert_eq!(first.len(), 8, "{}", slot.name);
        }
    }

    #[test]
    fn every_slot_is_known_and_fits_its_choice() {
        for (template, _) in templates() {
            let braces = template.matches('{').count();
            assert_eq!(parts(template).filter(|p| matches!(p, Part::Slot(_))).count(), braces, "{template}");
        }
        for slot in &SLOTS {
            if let Span::Story(choice) = slot.span {
                // else the values would not be equally likely, which the exact entropy and length assume
                assert!(KEPT[choice].is_multiple_of(slot.values.len()), "{}", slot.name);
            }
        }
    }

    #[test]
    fn every_kept_choice_shows_in_every_story() {
        // a choice without a trace in the text would count as entropy that the text does not have
        for (choice, _) in KEPT.iter().enumerate() {
            let shows = |template: &&'static str| {
                parts(template).any(|part| {
                    matches!(part, Part::Slot(s) if s.span == Span::Story(choice) && s.values.len() == KEPT[choice])
                })
            };
            let always = [&HEROES[..], &FRIENDS, &FINDS].iter().any(|templates| templates.iter().all(shows));
            assert!(always, "choice {choice}");
        }
    }

    #[test]
    fn the_exact_rate_is_the_measured_one() {
        let mut stories = Stories::new(5);
        let text = stories.text(4_000_000);
        let measured = stories.choice_nats() / text.len() as f64;
        let exact = Stories::nats_per_byte();
        assert!((measured / exact - 1.0).abs() < 0.003, "{measured} {exact}");
    }
}
