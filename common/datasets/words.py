"""Real words by topic, so that a text encoder has something to read in made-up items."""

TOPICS: dict[str, tuple[str, ...]] = {
    topic: tuple(words.split())
    for topic, words in {
        "sailing": "harbour anchor sail mast tide voyage captain compass deck island lighthouse storm rope crew "
        "ocean reef keel schooner pilot wave coast regatta buoy galley horizon",
        "cooking": "recipe kitchen oven garlic butter pepper soup roast bread chef spice dinner sauce noodle grill "
        "dessert flour onion pastry stew vinegar basil skillet feast tomato",
        "astronomy": "star planet comet telescope orbit galaxy moon eclipse nebula meteor satellite cosmos rocket "
        "gravity astronaut crater solar pulsar observatory constellation asteroid saturn mars lunar spacecraft",
        "gardening": "garden rose seed soil blossom hedge orchard compost spade tulip lawn greenhouse herb ivy vine "
        "pruning meadow bulb lavender fern watering petal shrub harvest daisy",
        "football": "goal striker stadium referee penalty league keeper midfield coach match derby kick champion "
        "defender trophy dribble corner squad transfer offside supporter tackle header captaincy cup",
        "music": "melody guitar piano drummer concert chord rhythm violin singer album orchestra jazz choir bass "
        "ballad tempo trumpet harmony studio vinyl opera quartet lyric cello encore",
        "crime": "detective murder alibi suspect police clue thief prison witness heist verdict gangster inspector "
        "robbery lawyer corpse evidence trial ransom jury fugitive forensic warrant informer sheriff",
        "romance": "love wedding kiss heart bride sweetheart courtship jealousy engagement valentine darling longing "
        "affair proposal honeymoon passion soulmate flirtation elopement devotion crush embrace bouquet letter lovers",
        "horror": "ghost haunted vampire graveyard scream curse demon zombie werewolf nightmare coffin witch crypt "
        "monster possession blood terror skeleton seance phantom shadow exorcist asylum ghoul dread",
        "history": "empire king castle revolution treaty dynasty knight ancient parliament pharaoh medieval archive "
        "crusade emperor colony throne chronicle senate legion monarchy gladiator fortress conquest viking scroll",
        "computers": "software keyboard algorithm compiler database network server laptop processor debug encryption "
        "browser pixel program robot terminal memory cloud firewall hacker byte router silicon binary code",
        "animals": "lion elephant wolf eagle dolphin tiger giraffe penguin bear otter falcon whale zebra panda fox "
        "leopard owl gorilla crocodile rabbit badger kangaroo hedgehog squirrel turtle",
        "mountains": "summit climber glacier ridge avalanche peak alpine basecamp cliff snow valley altitude trail "
        "sherpa boulder icefall expedition slope rucksack crampon chalet crevasse hiking plateau canyon",
        "fashion": "dress silk jacket runway denim scarf tailor boutique velvet handbag couture necklace collar linen "
        "sleeve designer corset cashmere wardrobe stiletto embroidery skirt button vogue bracelet",
        "finance": "bank market investor bond dividend currency mortgage stock broker budget inflation profit audit "
        "capital pension auction loan tariff treasury portfolio merchant tax ledger bankruptcy savings",
        "medicine": "doctor surgery hospital vaccine nurse patient diagnosis clinic fever heartbeat pharmacy antibody "
        "ambulance therapy virus surgeon bandage anatomy pulse remedy stethoscope immune epidemic scalpel recovery",
        "racing": "engine driver circuit turbo gearbox lap throttle podium garage piston rally chassis overtaking "
        "pitstop speedway exhaust grid helmet brakes motorcycle tyre qualifying hairpin slipstream chequered",
        "magic": "wizard spell dragon potion wand sorcerer enchanted fairy prophecy amulet unicorn rune elf cauldron "
        "goblin quest alchemist crystal oracle griffin talisman kingdom druid mermaid phoenix",
        "painting": "canvas easel portrait palette gallery sketch brush fresco sculpture watercolour museum pigment "
        "impressionist mural exhibition charcoal masterpiece curator pastel landscape varnish etching "
        "turpentine atelier ceramic",
        "railways": "locomotive station platform carriage signal tunnel conductor viaduct timetable steam express "
        "junction sleeper freight whistle ticket siding trackside boiler depot signalman buffers commuter gauge "
        "turntable",
    }.items()
}
"""Topic to its words, the most telling of it; 25 each."""

FORMS: tuple[str, ...] = (
    "The {a} and the {b}",
    "{a} of the {b}",
    "One {a} for the {b}",
    "Beyond the {a} {b}",
    "{a}, {b} and {c}",
    "The Last {a}",
    "Tales of {a} and {b}",
    "The {a} {b}",
)
"""Titles; a, b and c stand for words of the item's topic."""
