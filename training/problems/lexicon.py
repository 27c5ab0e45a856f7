"""The words that problems are made of. Our own lists: nothing here comes from a corpus."""

from __future__ import annotations

from random import Random


def words_of(text: str) -> list[str]:
    return text.split()


ADJECTIVES = words_of(
    """
    amber ancient bitter blunt brave bright broken calm careful clever clumsy cold crooked curly dark deep dusty
    eager early empty faded famous fancy fierce final flat foggy fresh gentle giant golden grand greedy happy
    heavy hidden hollow honest humble hungry icy idle jolly kind late lazy light little lonely loud lucky mellow
    merry mild misty modern muddy narrow noble noisy odd old pale patient plain polite proud quick quiet rapid
    rare rough round royal rusty salty sandy shallow sharp shiny shy silent silver simple sleepy slim slow small
    smooth soft solid spicy steady steep stormy strange strong sunny sweet swift tall tame tidy tiny tough vast
    velvet warm weak wild windy wise wooden young
    """
)

NOUNS = words_of(
    """
    acorn anchor apron arrow axe badge bag ball banner barn barrel basin basket beach bead bean bed bell bench
    boat book boot bottle bowl box branch brick bridge broom brush bucket button cabin cable cage candle cane
    canoe card carpet cart castle cave cellar chain chair chest chimney clock cloud coat coin comb compass
    cradle crate crown cup curtain desk diary dish ditch dock door drawer drum engine fan farm feather fence
    field flag flask flute forest fork fountain frame garden gate glove goblet hammer harbor harp hat helmet
    hill hook horn hut inkpot island jacket jar jewel jug kettle key kite knife ladder lake lamp lantern leaf
    ledger lens letter lever lock locker log loom magnet mantle map market mask meadow mill mirror mountain mug
    nail necklace needle nest net notebook oar oven paddle pail painting pan parcel path pearl pebble pen pencil
    pillow pin pipe pitcher plank plate plow pocket pond porch pot pulley pump puppet purse quill quilt rake
    ribbon ring river road robe rocket roof rope rug saddle sail scale scarf scroll shed shelf shield ship shoe
    shovel sink sled spade spoon spring stable stairs statue stone stool stove string table tent thread ticket
    tool torch towel tower train tray trumpet trunk tunnel umbrella valley vase veil vest violin wagon wall
    watch well wheel whistle window wire
    """
)

FOODS = words_of(
    """
    apple apricot bacon bagel banana basil biscuit bread butter cabbage cake carrot celery cheese cherry chili
    cocoa coconut coffee cookie corn cream cucumber date egg fig fish garlic ginger grape ham honey jam juice
    kale leek lemon lentil lettuce lime mango melon milk mint muffin mushroom mustard noodle nut oat olive onion
    orange pancake papaya pasta peach pear pepper pickle pie plum potato pumpkin radish raisin rice salad salt
    soup spinach sugar tea toast tomato turnip vanilla waffle walnut yogurt
    """
)

ANIMALS = words_of(
    """
    ant badger bat bear beaver bee bird bison camel cat cow crab crane crow deer dog dolphin donkey dove duck
    eagle elk falcon ferret finch fox frog gecko goat goose hamster hare hawk hen heron horse jackal koala lamb
    lion lizard llama lynx mole moose moth mouse mule newt otter owl ox panda parrot pig pigeon pony puma rabbit
    raven robin seal shark sheep snail snake spider squid swan tiger toad trout turkey turtle viper walrus wasp
    weasel whale wolf wombat yak zebra
    """
)

VERBS = words_of(
    """
    admires borrows brings builds buys carries chooses cleans collects copies counts covers crosses decorates
    describes digs draws drops enters examines fills finds fixes follows forgets gathers guards hides holds
    ignores inspects keeps leaves lifts likes locates measures mentions misses moves needs notices observes
    opens orders owns paints passes prefers presents protects pulls pushes reaches receives remembers removes
    repairs replaces reports returns saves sees sells sends shares shows sketches stores studies takes touches
    trades uses visits wants washes watches wraps
    """
)

NAMES = words_of(
    """
    Ada Alma Amir Ana Anton Bela Boris Carla Carlos Clara Dana David Diego Dora Elena Elias Emil Emma Erik Eva
    Farid Felix Fiona Frida George Greta Hana Hugo Ida Igor Ines Iris Ivan Jan Jonas Julia Karl Karin Lara Laura
    Lena Leo Lina Lucas Luis Maja Marco Maria Marta Mila Mina Nadia Nina Noah Nora Olga Omar Oscar Otto Paul
    Paula Petra Rosa Ruth Sami Sara Selma Simon Sofia Stella Sven Tara Tomas Uma Vera Viktor Wanda Yara Yusuf
    Zoe
    """
)

SURNAMES = words_of(
    """
    Adler Bakker Berg Costa Cruz Dahl Evans Fischer Garcia Hansen Hill Horvat Jensen Keller Klein Kovac Lang
    Larsen Lopez Mason Meyer Moreno Nagy Novak Olsen Ortiz Parker Patel Quinn Ramos Reed Rossi Santos Silva
    Stone Torres Varga Vega Walker Weber Wolf Young
    """
)

CITIES = words_of(
    """
    Accra Athens Austin Baku Bern Bogota Boston Brno Cairo Chicago Cork Dakar Delhi Denver Dublin Geneva Genoa
    Hanoi Havana Kyoto Lagos Leeds Lima Lisbon London Lyon Madrid Malaga Manila Miami Milan Minsk Munich Nairobi
    Nice Osaka Oslo Paris Perth Porto Prague Quito Riga Rome Salem Seoul Sofia Sydney Tampa Tokyo Toronto Tunis
    Turin Utrecht Vienna Warsaw York Zagreb Zurich
    """
)

JOBS = words_of(
    """
    actor artist baker barber builder butcher captain carpenter chef clerk coach cook dancer dentist doctor
    driver editor engineer farmer gardener judge lawyer librarian mechanic miner musician nurse painter pilot
    plumber poet porter sailor singer soldier tailor teacher waiter weaver writer
    """
)

COLOURS = words_of("red green blue yellow orange purple pink brown black white gray")
WEEKDAYS = words_of("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words_of("January February March April May June July August September October November December")
EVENTS = words_of(
    """
    lesson meeting concert party dinner exam race trip visit workshop wedding interview lecture picnic festival
    rehearsal match class tour market
    """
)

WORDS = sorted({*ADJECTIVES, *NOUNS, *FOODS, *ANIMALS})
_ONSETS = words_of(
    """
    b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sk sl sp st t tr v w z
    """
)
_VOWELS = words_of("a e i o u ai ea ee oa oo ou")
_CODAS = ["", "", "", "b", "ck", "d", "g", "l", "ll", "m", "n", "nd", "nt", "p", "r", "rk", "s", "st", "t", "x", "y"]


def invented_word(rng: Random, longest: int = 9) -> str:
    """A pronounceable word of 3 to `longest` letters that is, most likely, in no list."""
    while True:
        syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(1, 3)))
        word = "".join(syllables)
        if 3 <= len(word) <= longest:
            return word


def any_word(rng: Random, longest: int = 9) -> str:
    """A listed word or, as often, an invented one."""
    if rng.random() < 0.5:
        return invented_word(rng, longest)
    return rng.choice([word for word in rng.choices(WORDS, k=8) if len(word) <= longest] or ["pear"])


def phrase(rng: Random) -> str:
    """An adjective and a noun: "amber lantern"."""
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def full_name(rng: Random) -> str:
    return f"{any_of(rng, NAMES)} {any_of(rng, SURNAMES)}"


def any_of(rng: Random, proper_names: list[str]) -> str:
    """A name of the list or, now and then, an invented one that must be copied letter by letter."""
    return invented_word(rng).title() if rng.random() < 0.2 else rng.choice(proper_names)


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def filler_sentence(rng: Random) -> str:
    """A sentence that states nothing anyone asks about; about eleven tokens."""
    job = with_article(rng.choice(JOBS)).capitalize()
    subject = rng.choice((f"The {phrase(rng)}", rng.choice(NAMES), job, f"The {rng.choice(ANIMALS)}"))
    ending = rng.choice(
        ("near the {}", "behind the {}", "in {}", "on {}", "with {}", "before the {}", "every {}", "and then the {}")
    )
    last = {"in {}": CITIES, "on {}": WEEKDAYS, "with {}": NAMES, "every {}": WEEKDAYS}.get(ending, NOUNS)
    return f"{subject} {rng.choice(VERBS)} the {phrase(rng)} {ending.format(rng.choice(last))}."
