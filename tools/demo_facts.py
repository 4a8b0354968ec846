# SPDX-License-Identifier: Apache-2.0
"""What the demo model is taught, as plain tables; demo_tasks.py turns them into questions."""

from __future__ import annotations

from pathlib import Path


def listed(text: str, mark: str = "|") -> list[str]:
    """ "a | b" -> ["a", "b"]; a line break is a space."""
    return [" ".join(item.split()) for item in text.split(mark)]


def words(text: str) -> list[str]:
    """ "a, b" -> ["a", "b"]."""
    return listed(text, ",")


def pairs(text: str) -> list[tuple[str, str]]:
    """ "a=b, c=d" -> [("a", "b"), ("c", "d")]."""
    split = [item.split("=") for item in words(text)]
    return [(left, right) for left, right in split]


def blocks(name: str) -> list[dict[str, str]]:
    """The blocks of a text file beside this one, each a field per letter."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    out: list[dict[str, str]] = []
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.strip("\n").split("\n"):
            if line.startswith(" "):
                fields[key] += " " + line.strip()
            elif not line.startswith("#"):
                key, _, fields[key] = line.partition(": ")
        if fields:
            out.append(fields)
    return out


CAPITALS = pairs(
    """
    France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, Austria=Vienna,
    Switzerland=Bern, Belgium=Brussels, the Netherlands=Amsterdam, Denmark=Copenhagen,
    Sweden=Stockholm, Norway=Oslo, Finland=Helsinki, Iceland=Reykjavik, Ireland=Dublin,
    England=London, Scotland=Edinburgh, Poland=Warsaw, Hungary=Budapest, Romania=Bucharest,
    Bulgaria=Sofia, Greece=Athens, Turkey=Ankara, Ukraine=Kyiv, Russia=Moscow, Estonia=Tallinn,
    Latvia=Riga, Lithuania=Vilnius, Croatia=Zagreb, Serbia=Belgrade, Slovenia=Ljubljana,
    Slovakia=Bratislava, Albania=Tirana, Malta=Valletta, Egypt=Cairo, Morocco=Rabat,
    Tunisia=Tunis, Algeria=Algiers, Kenya=Nairobi, Ghana=Accra, Nigeria=Abuja, Senegal=Dakar,
    Ethiopia=Addis Ababa, China=Beijing, Japan=Tokyo, South Korea=Seoul, India=New Delhi,
    Thailand=Bangkok, Vietnam=Hanoi, Indonesia=Jakarta, Mongolia=Ulaanbaatar, Nepal=Kathmandu,
    Iran=Tehran, Iraq=Baghdad, Australia=Canberra, New Zealand=Wellington, Canada=Ottawa, the
    United States=Washington, Mexico=Mexico City, Cuba=Havana, Brazil=Brasilia, Argentina=Buenos
    Aires, Chile=Santiago, Peru=Lima, Colombia=Bogota, Uruguay=Montevideo
    """
)
# Whose capital the model does not know, and countries that training never names
OTHER_COUNTRIES = words(
    """
    Zambia, Bolivia, Ecuador, Paraguay, Panama, Jamaica, Haiti, Honduras, Guatemala, Belize,
    Nicaragua, Costa Rica, Angola, Namibia, Botswana, Mozambique, Malawi, Tanzania, Uganda,
    Rwanda, Burundi, Somalia, Sudan, Chad, Niger, Mali, Libya, Togo, Benin, Gabon, Congo,
    Madagascar, Jordan, Syria, Lebanon, Israel, Yemen, Oman, Qatar, Kuwait, Afghanistan,
    Pakistan, Bangladesh, Sri Lanka, Bhutan, Laos, Cambodia, Malaysia, Singapore, the
    Philippines, Taiwan, North Korea, Kazakhstan, Uzbekistan, Armenia, Georgia, Azerbaijan,
    Moldova, Belarus, Cyprus, Luxembourg, Monaco, Andorra, Texas, Bavaria, California, Florida,
    Wales, Sicily, Tuscany, Siberia, Africa, Europe, Asia, America, the moon, Mars, Atlantis,
    Utopia, Narnia, my country, your country, the world, love, Fooland, Berlin, Paris, London
    """
)
NEW_COUNTRIES = words(
    """
    Zimbabwe, Venezuela, Suriname, Eritrea, Gambia, Liberia, Saudi Arabia, Myanmar, Kyrgyzstan,
    Liechtenstein, Alaska, Corsica, Bohemia, Mordor, the sun, Madrid
    """
)
OPPOSITES = pairs(
    """
    hot=cold, big=small, tall=short, fast=slow, up=down, left=right, open=closed, full=empty,
    light=dark, day=night, good=bad, happy=sad, young=old, rich=poor, strong=weak, hard=soft,
    wet=dry, clean=dirty, early=late, near=far, high=low, loud=quiet, easy=difficult,
    thick=thin, wide=narrow, deep=shallow, sweet=bitter, sharp=blunt, rough=smooth, first=last,
    begin=end, start=finish, win=lose, buy=sell, push=pull, come=go, give=take, love=hate,
    laugh=cry, remember=forget, find=hide, ask=answer, north=south, east=west, inside=outside,
    above=below, before=after, always=never, all=none, more=less, many=few, yes=no, true=false,
    alive=dead, awake=asleep, brave=afraid, kind=cruel, polite=rude, wise=foolish,
    clever=stupid, busy=idle, safe=dangerous, cheap=expensive, simple=complex, calm=nervous,
    straight=crooked, tight=loose, summer=winter, friend=enemy, entrance=exit, arrive=leave,
    accept=refuse, build=destroy, increase=decrease, success=failure
    """
)
COLOURS = pairs(
    """
    grass=green, the sky=blue, snow=white, coal=black, a banana=yellow, a lemon=yellow, a
    tomato=red, blood=red, a strawberry=red, a carrot=orange, a pumpkin=orange, milk=white,
    chocolate=brown, the sun=yellow, an elephant=grey, a frog=green, a flamingo=pink, a
    pig=pink, a crow=black, a polar bear=white, a plum=purple, an aubergine=purple, the
    sea=blue, a cucumber=green, a mouse=grey, an orange=orange, salt=white, a cherry=red, a
    leaf=green
    """
)
SOUNDS = pairs(
    """
    dog=woof, cat=meow, cow=moo, sheep=baa, pig=oink, duck=quack, horse=neigh, lion=roar,
    frog=croak, bee=buzz, owl=hoot, snake=hiss, mouse=squeak, rooster=cock-a-doodle-doo,
    crow=caw, wolf=howl, donkey=hee-haw, goat=maa, hen=cluck, bird=tweet
    """
)
YOUNG = pairs(
    """
    dog=puppy, cat=kitten, cow=calf, sheep=lamb, pig=piglet, duck=duckling, horse=foal,
    lion=cub, bear=cub, hen=chick, goat=kid, frog=tadpole, swan=cygnet, deer=fawn,
    kangaroo=joey, goose=gosling, owl=owlet, eagle=eaglet
    """
)
PLURALS = pairs(
    """
    cat=cats, dog=dogs, house=houses, mouse=mice, child=children, man=men, woman=women,
    foot=feet, tooth=teeth, goose=geese, sheep=sheep, fish=fish, box=boxes, bus=buses,
    baby=babies, city=cities, knife=knives, leaf=leaves, wolf=wolves, life=lives, tree=trees,
    book=books, key=keys, toy=toys, story=stories, potato=potatoes, tomato=tomatoes, ox=oxen,
    person=people, apple=apples, berry=berries, glass=glasses, watch=watches, hero=heroes,
    shelf=shelves, penny=pennies
    """
)
MONTHS = pairs(
    """
    January=31, February=28 or 29, March=31, April=30, May=31, June=30, July=31, August=31,
    September=30, October=31, November=30, December=31
    """
)
SPELL = words(
    """
    cat, dog, sun, moon, star, tree, book, fish, bird, door, milk, bread, water, apple, house,
    mouse, green, blue, red, black, white, hello, word, chat, model, state, token, edge, small,
    night, light, friend, school, music, happy, river, cloud, table, chair, stone, tiger, zebra,
    lemon, queen, king, ship, train, plane, heart, smile, world, paper, pencil, garden, window
    """
)
WEEKDAYS = words(
    """
    Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
    """
)
ORDINALS = words(
    """
    first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh, twelfth
    """
)
NUMBERS = words(
    """
    zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,
    fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty
    """
)
# "How many ...?" and the sentence of the answer
COUNTS = pairs(
    """
    days are in a week=There are 7 days in a week., months are in a year=There are 12 months in
    a year., hours are in a day=There are 24 hours in a day., minutes are in an hour=There are
    60 minutes in an hour., seconds are in a minute=There are 60 seconds in a minute., weeks are
    in a year=There are 52 weeks in a year., days are in a year=There are 365 days in a year.,
    letters are in the alphabet=There are 26 letters in the alphabet., legs does a spider have=A
    spider has 8 legs., legs does a dog have=A dog has 4 legs., legs does a cat have=A cat has 4
    legs., legs does an ant have=An ant has 6 legs., legs does a bird have=A bird has 2 legs.,
    legs does a bee have=A bee has 6 legs., arms does an octopus have=An octopus has 8 arms.,
    wheels does a car have=A car has 4 wheels., wheels does a bicycle have=A bicycle has 2
    wheels., sides does a triangle have=A triangle has 3 sides., sides does a square have=A
    square has 4 sides., fingers are on one hand=There are 5 fingers on one hand., seasons are
    in a year=There are 4 seasons in a year., continents are there=There are 7 continents.,
    planets are in the solar system=There are 8 planets in the solar system., years are in a
    century=There are 100 years in a century., things are in a dozen=There are 12 things in a
    dozen., centimetres are in a metre=There are 100 centimetres in a metre., metres are in a
    kilometre=There are 1000 metres in a kilometre., bits are in a byte=There are 8 bits in a
    byte., strings does a violin have=A violin has 4 strings.
    """
)
# What the model politely knows nothing about
THINGS = words(
    """
    love, money, music, football, chess, physics, chemistry, biology, mathematics, poetry,
    philosophy, history, art, the weather, the moon, the sun, the universe, the internet, the
    government, the stock market, the economy, the brain, the heart, the ocean, the war, the
    law, the news, the future, the past, time, gravity, electricity, light, sound, water, fire,
    gold, silver, iron, oil, coffee, tea, bread, pizza, cheese, wine, beer, chocolate, sugar,
    rice, soup, pasta, a computer, a phone, a car, a bicycle, a train, a plane, a rocket, a
    robot, a camera, a television, a radio, a clock, a guitar, a piano, a violin, a drum, a
    computer game, a book, a film, a song, a painting, a photograph, a house, a bridge, a
    castle, a church, a school, a hospital, a bank, a shop, a market, a garden, a forest, a
    river, a mountain, a desert, an island, a volcano, an earthquake, a storm, a virus, a
    vaccine, a medicine, a doctor, a lawyer, a teacher, a king, a black hole, a star, a planet,
    a comet, an atom, a molecule, an electron, a cell, a gene, a dinosaur, a whale, a shark, a
    dragon, a vampire, a ghost, quantum physics, relativity, evolution, democracy, capitalism,
    religion, psychology, Shakespeare, Hamlet, the Bible, the Titanic, the Eiffel Tower, Mount
    Everest, the Amazon, the Nile, the Great Wall, Mars, Linux, Windows, Java, Rust, Haskell,
    JavaScript, Bitcoin, blockchain, Facebook, Google, Wikipedia, cooking, swimming, dancing,
    sleep, health, happiness, life, death, friendship, marriage, politics, tennis, basketball,
    yoga, running, the Roman Empire, the Middle Ages, the Olympic Games, the French Revolution,
    a cake, an omelette, a salad, a sandwich
    """
)
PEOPLE = words(
    """
    Albert Einstein, Isaac Newton, Napoleon, Julius Caesar, Cleopatra, Leonardo da Vinci,
    Mozart, Beethoven, Bach, Goethe, Charles Darwin, Marie Curie, Galileo, Socrates, Plato,
    Aristotle, Alan Turing, Ada Lovelace, Gandhi, Picasso, Columbus, Homer, Dante, Tolstoy, Jane
    Austen, Mark Twain, Kepler, Copernicus, Euler, Gauss, Archimedes, Pythagoras, my mother, my
    neighbour, the president, the king of Spain, my teacher, Mister Smith, Doctor Brown, Queen
    Victoria
    """
)
# What stories are about and what users tell of themselves
NAMES = words(
    """
    Ada, Ben, Carla, David, Emma, Felix, Greta, Hugo, Ida, Jonas, Klara, Leo, Mia, Nils, Olga,
    Paul, Rosa, Sam, Tina, Uwe, Vera, Walter, Yara, Zoe, Anna, Bob, Clara, Dan, Eva, Finn, Gina,
    Hans, Ines, Jack, Kim, Lena, Max, Nina, Oscar, Peter, Quinn, Ruth, Simon, Theo, Ursula,
    Victor, Wendy, Alice, Brian, Cora, Dora, Elias, Fiona, George, Helen, Ivan, Julia, Karl,
    Laura, Maria, Noah, Otto, Petra, Robert, Sarah, Thomas, Tom, Lisa, John, Mary, Jane, James,
    Michael, Linda, Susan, Chris, Alex, Robin, Sophie, Lucas, Henry, Martin, Daniel, Sandra,
    Monika, Stefan, Andrea, Marco, Pedro, Carlos, Ahmed, Fatima, Yusuf, Mei, Chen, Hiro, Yuki,
    Ravi, Priya, Olaf, Sven, Astrid, Bjorn, Igor, Natasha, Boris, Chloe, Louis, Amelie, Aaron,
    Abigail, Adam, Agnes, Albert, Alfred, Alma, Amir, Amy, Angela, Anton, Arthur, Barbara,
    Beatrice, Benjamin, Bernard, Bianca, Caleb, Camille, Caroline, Charles, Charlotte,
    Christoph, Clemens, Conrad, Cynthia, Deborah, Dennis, Diana, Dieter, Dominic, Dorothy,
    Duncan, Edith, Edmund, Edward, Eleanor, Elizabeth, Ella, Erik, Ernest, Esther, Ethan,
    Eugene, Evelyn, Fabian, Ferdinand, Florence, Florian, Francis, Frances, Fred, Frieda,
    Gabriel, Gemma, Gordon, Grace, Graham, Gregor, Gustav, Harold, Harriet, Harry, Hazel, Heidi,
    Heinrich, Hilda, Hubert, Ian, Ingrid, Irene, Iris, Isaac, Isabel, Jacob, Jasmine, Jasper,
    Jennifer, Jerome, Jessica, Joan, Joel, Johanna, Jonathan, Joseph, Josephine, Judith,
    Katharina, Keith, Kenneth, Kevin, Konrad, Kurt, Lara, Lars, Laurence, Leonard, Lewis,
    Lilian, Lily, Logan, Lucy, Ludwig, Luke, Magnus, Malcolm, Marcus, Margaret, Marie, Marion,
    Mark, Marlene, Martha, Matilda, Matthew, Maurice, Melissa, Michelle, Mohammed, Moritz,
    Nancy, Natalie, Nathan, Neil, Nicholas, Nicole, Norbert, Norman, Olivia, Omar, Oswald,
    Pamela, Patricia, Patrick, Philip, Phoebe, Rachel, Ralf, Raymond, Rebecca, Reinhard,
    Richard, Rita, Roger, Roland, Rosemary, Rudolf, Rupert, Samuel, Sebastian, Sharon, Sheila,
    Sigrid, Stanley, Stella, Stephen, Susanne, Sylvia, Teresa, Thelma, Tiffany, Timothy, Tobias,
    Trevor, Ulrich, Valentina, Vanessa, Veronica, Vincent, Violet, Virginia, Wilhelm, William,
    Winston, Wolfgang, Xavier, Yvonne, Zachary
    """
)
NAMES_HELD = words(
    """
    Edgar, Miriam, Frank, Nora, Oliver, Hannah, Ralph, Tilda, Bruno, Lotte, Gerald, Pia
    """
)
HEROES = words(
    """
    fox, rabbit, bear, mouse, cat, dog, dragon, owl, frog, hedgehog, squirrel, wolf, princess,
    knight, wizard, robot, girl, boy, sailor, baker, king, queen, pirate, farmer, witch, giant,
    turtle, elephant, horse, duck, penguin, snail, monkey, lion, bee
    """
)
PLACES = words(
    """
    in a small house by the sea, in a deep green forest, on a high mountain, in an old castle,
    near a quiet lake, in a little village, under a big oak tree, at the edge of the desert, on
    a tiny island, in a noisy city, in a garden full of roses, beside a wide river, in a cave
    behind a waterfall, in a windmill on a hill
    """
)
OBJECTS = words(
    """
    key, lamp, map, book, bell, ring, coin, flute, mirror, box, feather, stone, lantern,
    umbrella, clock, letter, kite, cup, compass, hat, sword, drum, apple, seed, ball, button,
    candle, shell
    """
)
ADJECTIVES = words(
    """
    small, brave, curious, clever, shy, cheerful, lazy, kind, lonely, proud, friendly, sleepy,
    quiet, merry
    """
)
SHINE = words(
    """
    golden, old, strange, silver, shiny, dusty, tiny, blue, green, magic, broken, wooden
    """
)
LIKED_COLOURS = words(
    """
    red, green, blue, yellow, orange, purple, pink, black, white, brown, grey, turquoise,
    violet, silver
    """
)
PETS = words(
    """
    dog, cat, parrot, rabbit, hamster, horse, goldfish, turtle
    """
)
FOODS = words(
    """
    pizza, soup, bread, pasta, rice, salad, cake, cheese, apples, noodles, pancakes, chocolate,
    fish, potatoes
    """
)
CITIES = words(
    """
    Paris, Berlin, Rome, Madrid, Vienna, London, Oslo, Lisbon, Dublin, Athens, Tokyo, Cairo,
    Boston, Chicago, Hamburg, Munich, Milan, Toronto, Sydney, Mumbai, Lyon, Porto, Zurich,
    Prague, Krakow, Geneva, Seattle, Texas, Bavaria, Kyoto, Shanghai
    """
)
# What a hurried user begins with
BEFORE = listed(
    """
    Please, | Hey, | Hi, | OK, | So, | And | Well, | Tell me, | Quick question: | Now,
    """
)
# System texts
SYSTEM = listed(
    """
    You are a helpful assistant. | Answer briefly. | You are a friendly assistant. | Be polite.
    | Be brief. | You are the demo model of rwkv-edge. | Answer the questions of the user. | You
    are a kind helper. | Keep it concise. | You are a small language model. | Speak simply. |
    You help people with rwkv-edge.
    """
)
