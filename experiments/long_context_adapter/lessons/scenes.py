"""What long writing is about: kinds of documents, and the sentences that fill them.

Things and places are singular and people have no form of "to be", so that every sentence agrees.
"""

from __future__ import annotations

from dataclasses import dataclass

from macbench.experiments.long_context_adapter.draw import Draw


@dataclass(frozen=True)
class Scene:
    """A kind of document; lists are separated by bars."""

    units: str  # what its sections may be called
    about: str
    things: str
    places: str
    people: str
    single: str  # events of one section each
    lasting: str  # of several in a row
    regular: str  # that come again and again


SCENES = (
    Scene(
        "Day|Sea Day|Log Week",
        "the log of the schooner {name}",
        "mainsail|anchor chain|water cask|compass|rigging|rudder|chart|lantern|pump|stove",
        "foredeck|cabin|hold|crow's nest|stern|galley|wheelhouse|lee side|gangway|bow",
        "the mate|the cook|the carpenter|the youngest sailor|the pilot|the captain|the passengers",
        "a whale beside the hull|the repair of the broken spar|a birthday of the cook"
        "|a race against a brig|the sale of the spare sail|a visit of the customs officer",
        "a passage through ice|a stay in the dry dock|a convoy with two frigates",
        "a fire drill|a bath for all hands|an inspection of the stores|music on deck",
    ),
    Scene(
        "Room|Hall|Floor",
        "the guide to the museum of {name}",
        "tapestry|glass case|oak panel|stone floor|skylight|long bench|bronze bust"
        "|spiral stair|brass railing|fountain|carved door",
        "east wall|alcove|gallery|entrance|window side|far corner|balcony|passage",
        "the keeper|school classes|the restorer|visiting scholars|the guide|evening guests",
        "a collection of clocks|a whale skeleton|the armour of a duke|a map room|a hall of mirrors"
        "|a model of the old town|a reading corner",
        "an exhibition of textiles|a display of minerals|a suite on seafaring",
        "a water tap|a small lift|a resting place with sofas|an emergency store",
    ),
    Scene(
        "Station|Stop|Journey Day",
        "a travel book on the railway line to {name}",
        "platform roof|signal box|waiting room|water tower|goods shed|flower bed|iron footbridge"
        "|ticket window|station clock|siding",
        "valley|hillside|market square|north platform|tunnel mouth|river bank|old quarter|meadow",
        "the station master|commuters|a porter|farmers|the signalman|hikers|a vendor of pears",
        "a glass-blowing workshop|a viaduct of nine arches|a buffet with pies|a war memorial"
        "|a nature trail|a locomotive museum|a cattle market",
        "a stretch of rebuilt track|a run along the gorge|a district of vineyards",
        "a coal depot|a bicycle hire|a telegraph office|a crossing loop",
    ),
    Scene(
        "Page|Week|Garden Week",
        "the almanac of the gardens of {name}",
        "rose arch|compost heap|greenhouse|stone path|pear tree|herb border|pond|beehive"
        "|hedge|sundial|tool shed",
        "kitchen garden|lower terrace|orchard|south wall|meadow|nursery bed|shade garden",
        "the head gardener|apprentices|neighbours|volunteers|the botanist|children from the school",
        "the planting of a walnut tree|a talk on moss|the arrival of the new bees|a frost alarm"
        "|an open day|a prize for the dahlias|the draining of the pond",
        "a harvest of plums|a repair of the glass roof|a trial of late tulips",
        "a sale of seedlings|a pruning lesson|a stock-taking of pots|an evening walk",
    ),
    Scene(
        "Evening|Week|Programme",
        "the season book of the theatre in {name}",
        "velvet curtain|footlight|orchestra pit|costume|painted forest|trapdoor|stage sword"
        "|chandelier|prompt box|playbill",
        "stage|foyer|balcony|dressing room|workshop|front row|rehearsal hall|stage door",
        "the director|the tenor|the chorus|the wardrobe mistress|critics|the stagehands|students",
        "a gala for the founders|a comedy in verse|the farewell of the conductor|a puppet play"
        "|an evening of ballads|a lecture with lantern slides|a benefit for the fire brigade",
        "a festival of one-act plays|a guest troupe from abroad|a cycle of operettas",
        "a matinee for families|a costume check|a raffle|a discussion with the audience",
    ),
    Scene(
        "Plot|Block|Lot",
        "the plan of the new settlement of {name}",
        "brick arcade|rain garden|timber hall|bus shelter|cycle path|solar roof|row of lime trees"
        "|playing field|granite step|street lamp|glass pavilion",
        "north side|courtyard|corner|main street|canal bank|inner lane|slope|square",
        "residents|shopkeepers|the architect|commuters|families|the gardener|older people",
        "a clinic|a fire station|a pottery|a market hall|a boarding school|a covered pool|a cinema"
        "|a tailor's shop|a bank of allotments",
        "a row of workshops|a green belt|a terrace of small houses",
        "a collection point for glass|a public well|a charging post|a chess table",
    ),
    Scene(
        "Week|Night|Duty Week",
        "the season plan of the lighthouse of {name}",
        "great lens|oil tank|fog bell|iron ladder|signal flag|rain gauge|supply boat|spare wick"
        "|brass plate|winch|storm shutter",
        "lamp room|landing stage|watch room|cliff path|cellar|boathouse|outer railing|kitchen",
        "the keeper|the assistant|the relief crew|the engineer|fishermen|the keeper's sister",
        "the painting of the tower|a visit of the inspector|the rescue of a fishing boat"
        "|a change of the lens|a photograph for the newspaper|the delivery of the new bell",
        "a spell of thick fog|a repair of the landing stage|a course for young keepers",
        "a test of the fog bell|a delivery of coal|a count of the passing ships|a letter ashore",
    ),
    Scene(
        "Lot|Room|Sheet",
        "the inventory of the estate of {name}",
        "walnut desk|pier glass|silver tureen|stuffed heron|portrait|carpet|writing box|harpsichord"
        "|linen press|globe|gun cabinet",
        "blue salon|attic|library|coach house|long corridor|pantry|tower room|chapel",
        "the heirs|the notary's clerk|the valuer|the housekeeper|two removal men|the old butler",
        "a cracked vase from the east|a box of love letters|a forged landscape"
        "|a set of silver spoons|a cradle with a crest|a clock without hands|a suit of court dress",
        "a library of sermons|a service of painted china|a group of family portraits",
        "a check by the notary|a note on woodworm|a sealed envelope|a claim by a cousin",
    ),
    Scene(
        "Record|Day|Hut Day",
        "the logbook of the mountain hut above {name}",
        "tiled stove|wood pile|weather vane|rope|sledge|water barrel|bunk|first-aid box|guest book"
        "|snow shovel|soup pot",
        "terrace|drying room|upper slope|dormitory|spring|glacier edge|goat stall|ridge",
        "the warden|two climbers|a party of students|the mountain guide|the warden's wife|porters",
        "a rescue with the sledge|a wedding at dawn|the first snow|a lost pair of boots"
        "|a lecture on avalanches|the flight of an eagle|a fall of rock",
        "a week of storm|a course in ropework|a closure of the upper path",
        "a load of firewood|a radio call to the valley|a change of blankets|a weighing of supplies",
    ),
    Scene(
        "Broadcast|Hour|Radio Week",
        "the schedule of the radio station of {name}",
        "microphone|record shelf|tape machine|studio clock|red lamp|piano|news desk|antenna"
        "|sound desk|telephone|script",
        "large studio|newsroom|archive|control room|roof|hallway|outside van|listening booth",
        "the announcer|the sound engineer|the editor|two singers|callers|the night crew|the author",
        "an interview with a diver|a play about a ferryman|a quiz on rivers|a live concert of harps"
        "|a report from the salt mine|a reading of fairy tales|a debate on bridges",
        "a series on forgotten trades|a week of chamber music|a course in Latin",
        "a weather report from the coast|a wish concert|a chess problem|an hour for gardeners",
    ),
    Scene(
        "Chapter|Meal|Kitchen Week",
        "the cookbook of the school of {name}",
        "copper pan|bread oven|spice rack|long table|rolling pin|kettle|cheese board|salad bowl"
        "|scale|recipe card|ladle",
        "kitchen|larder|dining hall|herb bed|serving hatch|cool cellar|back yard|bakehouse",
        "the cook|the older pupils|the dairy farmer|a grandmother|the class of ten|parents",
        "a soup of yellow peas|a pie with quinces|a supper for the choir|a tasting of honeys"
        "|a loaf with caraway|a breakfast in the hayloft|a pudding of rye",
        "a unit on preserving|a run of cold suppers|a project on old wheat",
        "a page on knives|a shopping list|a pot of stock|a lesson in laying the table",
    ),
    Scene(
        "Day|Camp|March Day",
        "the journal of the survey of {name}",
        "theodolite|pack mule|field table|canvas tent|chain|plumb line|sketch map|tin trunk"
        "|canoe|signal mast|barometer",
        "base line|ford|summit|camp|swamp edge|dry gully|forest track|saddle",
        "the surveyor|the muleteer|both chainmen|the draughtsman|the interpreter|villagers",
        "a meeting with the headman|the loss of a mule|an eclipse of the moon|a theft of flour"
        "|the naming of a peak|a swim through the ford|a fever of the draughtsman",
        "a wait for supplies|a march through reeds|a truce between two villages",
        "a day of rest|a reading of the barometer|a copy of the notes|a payment of wages",
    ),
)
FRAMES = (
    "{Person} spent most of the time near the {place}, where the {thing} needed a careful hand.",
    "The {thing} by the {place} was cleaned twice, and {person} took notes on how it held up.",
    "From the {place} one could see the {thing}, which looked {adj} in the {light} light.",
    "What people noticed first was the {thing}, {adj} and larger than they had expected.",
    "{Person} suggested moving the {thing} closer to the {place}, and nobody objected.",
    "There was some talk about the {thing}, but in the end it stayed at the {place}.",
    "Around the {place} everything looked {adj}, so {person} stayed longer than planned.",
    "It took {n} people to set up the {thing} again, and the work was done before noon.",
    "Between the {place} and the {place2} there is now a {adj} corner with room for {n} visitors.",
    "The {thing} and the {thing2} belong together, as {person} liked to explain.",
    "{Person} counted {n} small faults in the {thing}, none of them serious.",
    "In the {light} light the {place} seemed almost {adj}, and conversation grew quiet.",
    "A new coat of varnish was given to the {thing}; it should last for {n} seasons.",
    "Some asked why the {place} had been left empty, and {person} told them the story behind it.",
    "Nobody had used the {thing} for a while, yet it proved to be {adj} and sound.",
    "Later {person} left the {place} for the {place2} and wrote down what was missing.",
    "One detail deserves a mention: the {thing} was made by hand and still shows the maker's mark.",
    "Costs were kept low because the {thing} could be mended with what lay at the {place}.",
    "The weather held, which suited {person} and made the {place} pleasant.",
    "After a short pause {person} returned to the {thing} and finished the task with patience.",
    "A visitor praised the {adj} look of the {place} and asked for a drawing of the {thing}.",
    "Everything at the {place} follows a simple order: first the {thing}, then the {thing2}.",
    "It was quiet at the {place}, apart from {person} and the faint sound of the {thing2}.",
    "For those who come in the morning, the {thing} is the first sight on the way to the {place2}.",
    "Plans for the {thing} were discussed at length, and {n} proposals were put on the table.",
    "{Person} remembered how the {place} used to look before the {thing} was set up.",
    "By the end the {thing2} had been put away and the {place} swept clean.",
    "Much depends on the {thing}, so {person} looked after it every few hours.",
    "The {place} smelled of {smell}, and the {thing} was still warm to the touch.",
    "With a little luck the {thing} will be ready soon; {person} promised to help.",
    "Is the {thing} worth the trouble? {Person} thought so, and gave {n} good reasons.",
    "Not far from the {place2}, somebody had left a note about the {thing}.",
    "Rain or shine, the {place} keeps its old charm, and that is why {person} came back.",
    "Since the {thing} no longer stands at the {place}, there is space for the {thing2}.",
    '"It will do," said {person}, and the {thing} went back to the {place}.',
    "Under the {thing2} lay {n} coins and a ticket, which went to {person} for safe keeping.",
    "If the {thing} should fail, the {thing2} can take over until help arrives.",
    "Old and new meet at the {place}, where a faint smell of {smell} hangs in the air.",
    "Of all that there is to see, {person} liked the {thing} best.",
    "The way between the {place} and the {place2} takes {n} minutes, or less in a hurry.",
    "{Person} drew the {thing} in pencil and hung the sheet beside the {place}.",
    "Whoever passes the {place} hears about the {thing} sooner or later.",
    "Little had changed at the {place2}; even the {thing} stood where it had always stood.",
    "First the {thing} was measured, then the {thing2}, and both results were written down.",
    "A long hour followed, with tea, some laughter and a song by {person}.",
    "While {person} repaired the {thing}, others carried sand and boards to the {place}.",
    "The {thing} has cost more than the {thing2}, but it will outlast all of us.",
    "There are {n} ways to use the {thing}, and {person} tried every one of them.",
    "Thanks to {person}, the {place} has a {adj} look again.",
    "Towards the end the sun came round, and the {thing} threw a long shadow.",
    "No one could say who had ordered the {thing}, so {person} paid half of the bill.",
    "Please note that the {place} stays closed whenever the {thing} is being oiled.",
)
ADJECTIVES = "calm warm damp bright plain sturdy cool pale generous lively dusty graceful mild"
ADJECTIVES += " tidy cheerful weathered spacious modest curious"
LIGHTS = "early|failing|golden|grey|clear|slanting|soft"
SMELLS = "resin|wet stone|coffee|fresh paint|lavender|smoke|cut grass|old paper|salt"
NUMBERS = "two|three|four|five|six|a dozen|eight|nine"
STATED = (  # how a section tells of its event
    "Here the reader finds {event}, just as planned.",
    "This is the place for {event}, and much care went into it.",
    "What sets it apart is {event}.",
    "The main matter was {event}, which everybody had looked forward to.",
    "As intended, there was {event}.",
    "Nothing mattered as much here as {event}.",
    "At the centre of it all was {event}, and nobody wanted to miss that.",
    "True to the plan, this part has {event}.",
    "{Person} spoke of {event} more than of anything else.",
    "Room was made for {event}, as had been asked.",
)
NEXT = " The next time will be {unit}"  # a regular event tells when it comes again
LABELS = (  # of the parts of a section, where it has any
    "Setting|Work|People|Outlook",
    "Place|Detail|Use",
    "State|Care|Remarks|Sounds|Ending",
    "First hours|Midday|Late hours",
    "Materials|Company|Mood",
    "What was seen|What was done|What remains",
)


def sentences(draw: Draw, scene: Scene, words: int, least: int = 1) -> list[str]:
    """Different sentences of `words` words or more, `least` of them or more."""
    made: list[str] = []
    written = 0
    for frame in draw.sample(FRAMES, len(FRAMES)):
        if written >= words and len(made) >= least:
            break
        made.append(_sentence(draw, scene, frame))
        written += len(made[-1].split())
    return made


def _sentence(draw: Draw, scene: Scene, frame: str) -> str:
    person = draw.choice(scene.people.split("|"))
    thing, thing2 = draw.sample(scene.things.split("|"), 2)
    place, place2 = draw.sample(scene.places.split("|"), 2)
    return frame.format(
        person=person,
        Person=capital(person),
        thing=thing,
        thing2=thing2,
        place=place,
        place2=place2,
        adj=draw.choice(ADJECTIVES.split()),
        light=draw.choice(LIGHTS.split("|")),
        smell=draw.choice(SMELLS.split("|")),
        n=draw.choice(NUMBERS.split("|")),
    )


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
