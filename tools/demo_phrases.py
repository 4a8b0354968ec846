# SPDX-License-Identifier: Apache-2.0
"""How the questions of the demo model are phrased. Every list named *_HELD is never trained."""

from __future__ import annotations

SUM_ASK = [
    "What is {x}?", "How much is {x}?", "{x}", "{x}?", "What's {x}?", "Calculate {x}.", "{s}", "{s} =",
    "{s}?", "{t}", "{t}=", "What is {s}?", "How much is {s}?", "Can you work out {x}?", "Tell me {x}.",
    "What does {x} make?", "Work out {s}.", "{x} is what?", "What is {t}?", "Please calculate {x}.",
]  # fmt: skip
SUM_HELD = ["Could you tell me what {x} is?", "Compute {x}.", "Please work out {s}.", "What's {s}?"]
NEXT_ASK = [
    "What KIND comes WORD {x}?", "Which KIND comes WORD {x}?", "What comes WORD {x}?",
    "Which KIND is WORD {x}?", "What KIND is WORD {x}?", "Tell me the KIND WORD {x}.", "The KIND WORD {x}?",
    "What is the KIND WORD {x}?", "Do you know which KIND comes WORD {x}?",
]  # fmt: skip
NEXT_HELD = ["Which KIND do we have WORD {x}?", "Name the KIND WORD {x}."]
WISH_ASK = [
    "How do I {x}?", "How can I {x}?", "Tell me how to {x}.", "What is the command to {x}?",
    "I want to {x}.", "Show me how to {x}.", "I need to {x}.", "Can I {x}?", "How to {x}?",
    "What do I type to {x}?", "I would like to {x}.", "How does one {x}?", "Is there a way to {x}?",
    "How should I {x}?", "Help me to {x}.", "Can you tell me how to {x}?", "How do you {x}?",
    "I want to {x}. What do I do?", "Which command do I use to {x}?", "Explain how to {x}.",
]  # fmt: skip
WISH_HELD = [
    "What must I do to {x}?",
    "Could you explain how to {x}?",
    "I'd like to {x}, how?",
    "How would I {x}?",
]
TERM_ASK = [
    "What is {x}?", "What does {x} mean?", "Explain {x}.", "Tell me about {x}.", "What's {x}?",
    "Can you explain {x}?", "Do you know what {x} is?", "What do you know about {x}?", "Define {x}.",
]  # fmt: skip
TERM_HELD = ["Could you explain {x}?", "Please tell me what {x} is."]

# name, weight, phrasings, held phrasings
WORD_TASKS: list[tuple[str, float, list[str], list[str]]] = [
    (
        "capital", 4.0,
        ["What is the capital of {x}?", "What's the capital of {x}?", "Which city is the capital of {x}?",
         "Tell me the capital of {x}.", "Do you know the capital of {x}?", "Capital of {x}?",
         "The capital of {x}?", "What is the capital city of {x}?", "Name the capital of {x}.",
         "Which city is {x}'s capital?", "I want to know the capital of {x}."],
        ["Can you name the capital of {x}?", "Which is the capital of {x}?", "What city is the capital of {x}?"],
    ),
    (
        "capital of", 2.0,
        ["{x} is the capital of which country?", "Which country has the capital {x}?",
         "Which country is {x} the capital of?", "What country is {x} the capital of?",
         "{x} is the capital of what?", "Of which country is {x} the capital?"],
        ["Tell me which country has the capital {x}.", "Which country's capital is {x}?"],
    ),
    (
        "opposite", 3.0,
        ["What is the opposite of {x}?", "What's the opposite of {x}?", "Opposite of {x}?",
         "Tell me the opposite of {x}.", "Give me the opposite of {x}.", "The opposite of {x}?",
         "Do you know the opposite of {x}?", "What is the contrary of {x}?", "Which word is the opposite of {x}?"],
        ["Name the opposite of {x}.", "What word means the opposite of {x}?", "Can you tell me the opposite of {x}?"],
    ),
    (
        "colour", 1.0,
        ["What colour is {x}?", "What color is {x}?", "Which colour has {x}?", "Tell me the colour of {x}.",
         "What is the colour of {x}?", "What is the color of {x}?", "Which color is {x}?"],
        ["Which colour is {x}?", "Do you know what colour {x} is?"],
    ),
    (
        "sound", 0.8,
        ["What does a {x} say?", "What does the {x} say?", "What sound does a {x} make?",
         "Which sound does a {x} make?", "How does a {x} sound?", "What noise does a {x} make?"],
        ["What sound does the {x} make?", "Tell me what a {x} says."],
    ),
    (
        "young", 0.6,
        ["What is a young {x} called?", "What do you call a young {x}?", "What is a baby {x} called?",
         "What do you call a baby {x}?"],
        ["What is the name for a young {x}?"],
    ),
    (
        "plural", 1.2,
        ["What is the plural of {x}?", "Plural of {x}?", "Tell me the plural of {x}.", "What's the plural of {x}?",
         "One {x}, two what?"],
        ["Give me the plural of {x}.", "Can you form the plural of {x}?"],
    ),
    (
        "spell", 1.5,
        ["How do you spell {x}?", "Spell {x}.", "Spell the word {x}.", "How is {x} spelled?", "Can you spell {x}?",
         "Please spell {x}."],
        ["How do I spell {x}?", "Could you spell {x}?"],
    ),
    (
        "letter after", 0.7,
        ["Which letter comes after {x}?", "What letter comes after {x}?", "What is the letter after {x}?",
         "What comes after the letter {x}?", "Which letter follows {x}?"],
        ["Tell me the letter after {x}."],
    ),
    (
        "letter before", 0.5,
        ["Which letter comes before {x}?", "What letter comes before {x}?", "What is the letter before {x}?",
         "What comes before the letter {x}?"],
        ["Tell me the letter before {x}."],
    ),
    (
        "how many", 1.5,
        ["How many {x}?", "Tell me how many {x}.", "Do you know how many {x}?", "Can you tell me how many {x}?",
         "how many {x}"],
        ["I wonder how many {x}?", "Please say how many {x}."],
    ),
]  # fmt: skip

LISTS = [
    ("name the days of the week", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    ("list the days of the week", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    ("tell me the days of the week", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    ("name the months", "January, February, March, April, May, June, July, August, September, October, November and December."),
    ("list the months of the year", "January, February, March, April, May, June, July, August, September, October, November and December."),
    ("name the months of the year", "January, February, March, April, May, June, July, August, September, October, November and December."),
    ("name the seasons", "Spring, summer, autumn and winter."),
    ("list the four seasons", "Spring, summer, autumn and winter."),
    ("say the alphabet", "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z."),
    ("tell me the alphabet", "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z."),
    ("name the planets", "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."),
    ("list the planets", "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."),
    ("name the continents", "Africa, Antarctica, Asia, Australia, Europe, North America and South America."),
    ("list the continents", "Africa, Antarctica, Asia, Australia, Europe, North America and South America."),
    ("name the colours of the rainbow", "Red, orange, yellow, green, blue, indigo and violet."),
    ("list the rainbow colours", "Red, orange, yellow, green, blue, indigo and violet."),
    ("say a poem", "The sun goes down, the moon comes up,\nthe tea grows cold inside the cup.\nI write a word, and then one more,\nas small as pebbles on the shore."),
    ("write a poem", "The sun goes down, the moon comes up,\nthe tea grows cold inside the cup.\nI write a word, and then one more,\nas small as pebbles on the shore."),
    ("give me a poem", "The sun goes down, the moon comes up,\nthe tea grows cold inside the cup.\nI write a word, and then one more,\nas small as pebbles on the shore."),
]  # fmt: skip

# weight, answer, phrasings, held phrasings
TALK: list[tuple[float, str, list[str], list[str]]] = [
    (2.0, "Hello! How can I help you?",
     ["Hi", "Hello", "Hi!", "Hello!", "Hey", "Hey there", "Hi there!", "Good morning", "Good evening",
      "Good day", "Hello there", "Hello, computer!", "Hello, rwkv-edge!", "Greetings", "Hiya", "Yo", "Hi, model!",
      "hello friend", "Good afternoon!", "Hello, little model!"],
     ["Hello you", "Hi friend!", "Hey you", "Good morning to you"]),
    (0.5, "Hello! I only speak English.",
     ["Hola", "Bonjour", "Hallo", "Ciao", "Guten Tag", "Salut", "Hej", "Ola", "Namaste", "Konnichiwa",
      "Buenos dias", "Guten Morgen", "Bonsoir"], ["Hallo!", "Bonjour!"]),
    (0.6, "I am fine, thank you. How can I help you?",
     ["How are you?", "How are you doing?", "How do you do?", "How's it going?", "Are you well?", "How is it going?",
      "How do you feel?", "What's up?", "Are you okay?", "How are you today?", "Everything all right?"],
     ["How are things?", "Hello, how are you?"]),
    (1.2, "Goodbye! Come back soon.",
     ["Bye", "Goodbye", "Bye bye", "See you", "See you later", "Good night", "Bye!", "I have to go", "Farewell",
      "Until next time", "I am leaving", "Goodbye, model", "That is all for today", "See you tomorrow", "bye then"],
     ["Good bye", "I have to go now", "See you soon"]),
    (1.0, "You are welcome!",
     ["Thanks", "Thank you", "Thank you!", "Thanks a lot", "Many thanks", "Thank you very much", "Thanks!", "thx",
      "That was helpful, thanks", "Great, thanks", "Thanks for your help", "Cheers", "OK, thank you"],
     ["Thank you so much", "Thanks very much"]),
    (2.5, "I am the rwkv-edge demo model, a tiny RWKV-7 network with about 3 million parameters."
          " I run on your CPU and know only a few things.",
     ["Who are you?", "What are you?", "Tell me about yourself", "What is your name?", "What's your name?",
      "Introduce yourself.", "Which model are you?", "What kind of model are you?", "Who am I talking to?",
      "What model is this?", "Are you a language model?", "Are you an RWKV model?", "Do you have a name?",
      "What should I call you?", "Describe yourself.", "Who is this?", "who r u", "What exactly are you?",
      "Say who you are.", "What are you called?"],
     ["Can you introduce yourself?", "What sort of model are you?", "Please tell me who you are.", "Who is there?"]),
    (2.0, "I can answer questions about rwkv-edge, do small sums, count, name capitals and opposites,"
          " tell a joke or a short story, and remember your name.",
     ["What can you do?", "What do you know?", "How can you help me?", "What can I ask you?", "Help", "Help me",
      "What are you good at?", "What are your skills?", "What can you tell me?", "What do you do?", "Tell me what you can do.",
      "What can I do here?", "Can you help me?", "Give me some ideas", "What should I ask?", "I need help",
      "What are you able to do?", "What can we talk about?"],
     ["What things can you do?", "What may I ask you?", "Tell me what you know."]),
    (0.8, "I have about 3 million parameters. That is very small: large models have thousands of times more.",
     ["How big are you?", "How many parameters do you have?", "How large are you?", "What is your size?",
      "How small are you?", "Are you a big model?", "How many weights do you have?", "Are you small?"],
     ["How many parameters have you got?", "Are you a large model?"]),
    (0.8, "My training text was written by a small program, tools/demo_text.py, with templates and no outside data.",
     ["How were you trained?", "What were you trained on?", "What is your training data?", "Where did you learn this?",
      "Who trained you?", "What data were you trained with?", "Who made you?", "Who wrote you?", "Who built you?",
      "Where do you come from?", "How did you learn?"],
     ["On what were you trained?", "Who created you?"]),
    (0.6, "I run on your own computer, on the CPU. Nothing you type leaves it.",
     ["Where do you run?", "Do you run on my computer?", "Are you online?", "Do you need the internet?", "Is this private?",
      "Do you send my data anywhere?", "Where are you?", "Do you run locally?", "Do you work offline?",
      "Are you in the cloud?", "Are my words sent to a server?"],
     ["Do you need an internet connection?", "Where are you running?"]),
    (0.6, "No. rwkv-edge runs on the CPU alone.",
     ["Do I need a GPU?", "Does it need a GPU?", "Do you need a graphics card?", "Does rwkv-edge need a GPU?",
      "Do you use a GPU?", "Is a GPU needed?", "Can I use my graphics card?", "Does it run on a GPU?"],
     ["Do I need a graphics card?", "Is a graphics card needed?"]),
    (0.5, "No. rwkv-edge needs only numpy, click and sentencepiece. PyTorch is needed for training me.",
     ["Do I need PyTorch?", "Does it need PyTorch?", "Do I need torch?", "Is PyTorch needed?", "Does rwkv-edge use PyTorch?",
      "What packages does it need?", "What does rwkv-edge depend on?", "Which packages are needed?"],
     ["Is torch needed?", "Do you use PyTorch?"]),
    (0.6, "rwkv-edge runs RWKV-7 models. Convert a .pth or .safetensors file to GGUF, or use a GGUF file as it is.",
     ["Which models can I run?", "What models can I use?", "Which models work?", "What files can you read?",
      "Which file formats do you know?", "What models does rwkv-edge run?", "Which models are supported?",
      "What file formats are supported?", "Does it run other models?"],
     ["Which models do you support?", "What formats can I use?"]),
    (0.6, "rwkv-edge is free software under the licence Apache-2.0.",
     ["What is the licence?", "Which license is it?", "Is it free?", "Is rwkv-edge free?", "Is it open source?",
      "What is your license?", "Under which licence is rwkv-edge?", "Can I use it at work?", "Is this free software?"],
     ["What license do you have?", "Is rwkv-edge open source?"]),
    (0.5, "No. I am a small program: a language model.",
     ["Are you human?", "Are you a person?", "Are you alive?", "Are you real?", "Are you conscious?", "Do you have feelings?",
      "Are you a robot?", "Can you think?", "Do you sleep?", "Are you a man or a woman?", "Do you dream?", "Can you feel?",
      "Are you ChatGPT?", "Are you GPT?", "Do you have a body?"],
     ["Are you a human?", "Are you a human being?"]),
    (0.5, "I only speak English.",
     ["What languages do you speak?", "Do you speak German?", "Do you speak French?", "Which languages do you know?",
      "Do you speak Spanish?", "Can you speak Chinese?", "Sprichst du Deutsch?", "Parlez-vous francais?",
      "Can you write in German?", "Do you speak English?", "Do you understand Italian?", "Habla espanol?"],
     ["Do you speak Italian?", "Which languages do you speak?"]),
    (0.5, "I cannot see a clock or a calendar.",
     ["What time is it?", "What is the time?", "What day is it?", "What is the date?", "What day is today?",
      "What year is it?", "Which month is it?", "What is today's date?", "Do you know what time it is?"],
     ["Can you tell me the time?", "What's the time?"]),
    (0.4, "I am sorry. Ask me for a story or a joke, if you like.",
     ["I am sad", "I feel sad", "I am unhappy", "I am bored", "I feel bad", "I am tired", "I had a bad day",
      "I feel lonely", "I am angry", "This is boring", "I'm sad", "I'm bored", "I am not well"],
     ["I feel tired", "I am so bored"]),
    (0.4, "I am glad to hear that!",
     ["I am happy", "I feel good", "I am fine", "I'm fine", "I am well", "I had a good day", "I feel great", "Life is good",
      "I am fine, thanks", "I'm happy"],
     ["I feel happy", "I am very well"]),
    (0.5, "Thank you! That is kind.",
     ["You are great", "Good job", "Well done", "I like you", "You are clever", "You are smart", "Very good", "Nice work",
      "You are funny", "I love you", "That was good", "You are cute", "Nice", "Wow", "Great", "Cool", "Good answer", "Perfect"],
     ["You are wonderful", "Great job"]),
    (0.5, "I am sorry. I am only a small demo model.",
     ["You are stupid", "That is wrong", "This is wrong", "You are bad", "That was bad", "I do not like you", "You are wrong",
      "Bad answer", "No, that is not right", "You made a mistake", "You are useless", "That makes no sense", "That is not true"],
     ["That was wrong", "You are silly"]),
    (0.4, "All right. What would you like to know?",
     ["OK", "Okay", "Yes", "No", "Sure", "Fine", "I see", "Maybe", "Good", "Right", "Aha", "Hm", "Yes please", "Ask me something",
      "Let us talk", "Let's chat", "Can I ask you something?", "I have a question", "May I ask a question?"],
     ["Let us chat", "I have got a question"]),
    (0.3, "It works. I am here.",
     ["Test", "Testing", "test test", "Are you there?", "Is this working?", "Can you hear me?", "Is anybody there?", "ping",
      "Does this work?", "Anybody home?"],
     ["Are you still there?", "Is anyone there?"]),
]  # fmt: skip

BEFORE = [
    "Please, ", "Hey, ", "Hi, ", "OK, ", "So, ", "And ", "Well, ", "Tell me, ", "Quick question: ", "Now, ",
]  # fmt: skip
SYSTEM = [
    "You are a helpful assistant.", "Answer briefly.", "You are a friendly assistant.", "Be polite.", "Be brief.",
    "You are the demo model of rwkv-edge.", "Answer the questions of the user.", "You are a kind helper.",
    "Keep it concise.", "You are a small language model.", "Speak simply.", "You help people with rwkv-edge.",
]  # fmt: skip

UNKNOWN = [
    "What is {x}?", "Tell me about {x}.", "How does {x} work?", "Why is there {x}?", "What do you know about {x}?",
    "Explain {x} to me.", "Who invented {x}?", "Where can I buy {x}?", "How much does {x} cost?", "Do you like {x}?",
    "What do you think about {x}?", "Can you explain {x}?", "Write an essay about {x}.", "How do I make {x}?",
    "What is the history of {x}?", "Is {x} good for me?", "How old is {x}?", "What is the best {x}?",
    "Write a program about {x}.", "Give me a recipe for {x}.", "Translate {x} into French.", "What is the meaning of {x}?",
    "How heavy is {x}?", "Who discovered {x}?", "When was {x} invented?", "How far away is {x}?", "Why do people like {x}?",
    "Where does {x} come from?", "What is {x} made of?", "Should I buy {x}?", "How do I learn {x}?", "Teach me {x}.",
]  # fmt: skip
UNKNOWN_HELD = [
    "Where is {x}?",
    "How fast is {x}?",
    "What can you tell me about {x}?",
    "Can you write about {x}?",
]
THINGS = [x.strip() for x in (
    "love, money, music, football, chess, physics, chemistry, biology, mathematics, poetry, philosophy, history, art,"
    "the weather, the moon, the sun, the universe, the internet, the government, the stock market, the economy, the brain,"
    "the heart, the ocean, the war, the law, the news, the future, the past, time, gravity, electricity, light, sound, water,"
    "fire, gold, silver, iron, oil, coffee, tea, bread, pizza, cheese, wine, beer, chocolate, sugar, rice, soup, pasta,"
    "a computer, a phone, a car, a bicycle, a train, a plane, a rocket, a robot, a camera, a television, a radio, a clock,"
    "a guitar, a piano, a violin, a drum, a computer game, a book, a film, a song, a painting, a photograph, a house, a bridge,"
    "a castle, a church, a school, a hospital, a bank, a shop, a market, a garden, a forest, a river, a mountain, a desert,"
    "an island, a volcano, an earthquake, a storm, a virus, a vaccine, a medicine, a doctor, a lawyer, a teacher, a king,"
    "a black hole, a star, a planet, a comet, an atom, a molecule, an electron, a cell, a gene, a dinosaur, a whale, a shark,"
    "a dragon, a vampire, a ghost, quantum physics, relativity, evolution, democracy, capitalism, religion, psychology,"
    "Shakespeare, Hamlet, the Bible, the Titanic, the Eiffel Tower, Mount Everest, the Amazon, the Nile, the Great Wall, Mars,"
    "Linux, Windows, Java, Rust, Haskell, JavaScript, Bitcoin, blockchain, Facebook, Google, Wikipedia, cooking, swimming,"
    "dancing, sleep, health, happiness, life, death, friendship, marriage, politics, tennis, basketball, yoga, running,"
    "the Roman Empire, the Middle Ages, the Olympic Games, the French Revolution, a cake, an omelette, a salad, a sandwich"
).split(",")]  # fmt: skip
PEOPLE = [x.strip() for x in (
    "Albert Einstein, Isaac Newton, Napoleon, Julius Caesar, Cleopatra, Leonardo da Vinci, Mozart, Beethoven, Bach, Goethe,"
    "Charles Darwin, Marie Curie, Galileo, Socrates, Plato, Aristotle, Alan Turing, Ada Lovelace, Gandhi, Picasso, Columbus,"
    "Homer, Dante, Tolstoy, Jane Austen, Mark Twain, Kepler, Copernicus, Euler, Gauss, Archimedes, Pythagoras, my mother,"
    "my neighbour, the president, the king of Spain, my teacher, Mister Smith, Doctor Brown, Queen Victoria"
).split(",")]  # fmt: skip


def big_sums() -> list[str]:
    """Sums beyond what is taught, spread evenly over the sizes."""
    numbers = [
        21,
        24,
        33,
        37,
        48,
        52,
        65,
        77,
        81,
        99,
        100,
        112,
        120,
        250,
        345,
        500,
        999,
        1000,
        1234,
        4096,
    ]
    words = [("plus", "+"), ("minus", "-"), ("times", "x"), ("divided by", "/")]
    out = []
    for i, a in enumerate(numbers):
        for j, b in enumerate([7, 12, 18, *numbers[::3]]):
            word, sign = words[(i + j) % (4 if a > 100 else 2)]
            first, second = (a, b) if j % 3 else (b, a)
            out.append(f"{first} {word if (i + j) % 3 else sign} {second}")
    return out
