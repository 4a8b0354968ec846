# SPDX-License-Identifier: Apache-2.0
"""What the demo model is taught, as plain tables; demo_text.py turns them into conversations."""

from __future__ import annotations


def pairs(text: str) -> list[tuple[str, str]]:
    """ "a=b, c=d" -> [("a", "b"), ("c", "d")]."""
    split = [item.strip().split("=") for item in text.split(",")]
    return [(left.strip(), right.strip()) for left, right in split]


def words(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


CAPITALS = pairs(
    "France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, Austria=Vienna,"
    "Switzerland=Bern, Belgium=Brussels, the Netherlands=Amsterdam, Denmark=Copenhagen,"
    "Sweden=Stockholm, Norway=Oslo, Finland=Helsinki, Iceland=Reykjavik, Ireland=Dublin,"
    "England=London, Scotland=Edinburgh, Poland=Warsaw, Hungary=Budapest, Romania=Bucharest,"
    "Bulgaria=Sofia, Greece=Athens, Turkey=Ankara, Ukraine=Kyiv, Russia=Moscow, Estonia=Tallinn,"
    "Latvia=Riga, Lithuania=Vilnius, Croatia=Zagreb, Serbia=Belgrade, Slovenia=Ljubljana,"
    "Slovakia=Bratislava, Albania=Tirana, Malta=Valletta, Egypt=Cairo, Morocco=Rabat,"
    "Tunisia=Tunis, Algeria=Algiers, Kenya=Nairobi, Ghana=Accra, Nigeria=Abuja, Senegal=Dakar,"
    "Ethiopia=Addis Ababa, China=Beijing, Japan=Tokyo, South Korea=Seoul, India=New Delhi,"
    "Thailand=Bangkok, Vietnam=Hanoi, Indonesia=Jakarta, Mongolia=Ulaanbaatar, Nepal=Kathmandu,"
    "Iran=Tehran, Iraq=Baghdad, Australia=Canberra, New Zealand=Wellington, Canada=Ottawa,"
    "the United States=Washington, Mexico=Mexico City, Cuba=Havana, Brazil=Brasilia,"
    "Argentina=Buenos Aires, Chile=Santiago, Peru=Lima, Colombia=Bogota, Uruguay=Montevideo"
)
OPPOSITES = pairs(
    "hot=cold, big=small, tall=short, fast=slow, up=down, left=right, open=closed, full=empty,"
    "light=dark, day=night, good=bad, happy=sad, young=old, rich=poor, strong=weak, hard=soft,"
    "wet=dry, clean=dirty, early=late, near=far, high=low, loud=quiet, easy=difficult, thick=thin,"
    "wide=narrow, deep=shallow, sweet=bitter, sharp=blunt, rough=smooth,"
    "first=last, begin=end, start=finish, win=lose, buy=sell, push=pull, come=go, give=take,"
    "love=hate, laugh=cry, remember=forget, find=hide, ask=answer, north=south, east=west,"
    "inside=outside, above=below, before=after, always=never, all=none, more=less, many=few,"
    "yes=no, true=false, alive=dead, awake=asleep, brave=afraid, kind=cruel, polite=rude,"
    "wise=foolish, clever=stupid, busy=idle, safe=dangerous, cheap=expensive, simple=complex,"
    "calm=nervous, straight=crooked, tight=loose, summer=winter, friend=enemy,"
    "entrance=exit, arrive=leave, accept=refuse, build=destroy, increase=decrease, success=failure"
)
COLOURS = pairs(
    "grass=green, the sky=blue, snow=white, coal=black, a banana=yellow, a lemon=yellow,"
    "a tomato=red, blood=red, a strawberry=red, a carrot=orange, a pumpkin=orange, milk=white,"
    "chocolate=brown, the sun=yellow, an elephant=grey, a frog=green, a flamingo=pink, a pig=pink,"
    "a crow=black, a polar bear=white, a plum=purple, an aubergine=purple, the sea=blue,"
    "a cucumber=green, a mouse=grey, an orange=orange, salt=white, a cherry=red, a leaf=green"
)
SOUNDS = pairs(
    "dog=woof, cat=meow, cow=moo, sheep=baa, pig=oink, duck=quack, horse=neigh, lion=roar,"
    "frog=croak, bee=buzz, owl=hoot, snake=hiss, mouse=squeak, rooster=cock-a-doodle-doo,"
    "crow=caw, wolf=howl, donkey=hee-haw, goat=maa, hen=cluck, bird=tweet"
)
YOUNG = pairs(
    "dog=puppy, cat=kitten, cow=calf, sheep=lamb, pig=piglet, duck=duckling, horse=foal, lion=cub,"
    "bear=cub, hen=chick, goat=kid, frog=tadpole, swan=cygnet, deer=fawn, kangaroo=joey,"
    "goose=gosling, owl=owlet, eagle=eaglet"
)
PLURALS = pairs(
    "cat=cats, dog=dogs, house=houses, mouse=mice, child=children, man=men, woman=women, foot=feet,"
    "tooth=teeth, goose=geese, sheep=sheep, fish=fish, box=boxes, bus=buses, baby=babies, city=cities,"
    "knife=knives, leaf=leaves, wolf=wolves, life=lives, tree=trees, book=books, key=keys, toy=toys,"
    "story=stories, potato=potatoes, tomato=tomatoes, ox=oxen, person=people, apple=apples,"
    "berry=berries, glass=glasses, watch=watches, hero=heroes, shelf=shelves, penny=pennies"
)
SPELL = words(
    "cat, dog, sun, moon, star, tree, book, fish, bird, door, milk, bread, water, apple, house,"
    "mouse, green, blue, red, black, white, hello, word, chat, model, state, token, edge, small,"
    "night, light, friend, school, music, happy, river, cloud, table, chair, stone, tiger, zebra,"
    "lemon, queen, king, ship, train, plane, heart, smile, world, paper, pencil, garden, window"
)
WEEKDAYS = words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = pairs(
    "January=31, February=28 or 29, March=31, April=30, May=31, June=30, July=31, August=31,"
    "September=30, October=31, November=30, December=31"
)
ORDINALS = words(
    "first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh, twelfth"
)
NUMBERS = words(
    "zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,"
    "fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty"
)
COUNTS = pairs(  # "How many X?" -> the sentence of the answer
    "days are in a week=There are 7 days in a week., months are in a year=There are 12 months in a year.,"
    "hours are in a day=There are 24 hours in a day., minutes are in an hour=There are 60 minutes in an hour.,"
    "seconds are in a minute=There are 60 seconds in a minute., weeks are in a year=There are 52 weeks in a year.,"
    "days are in a year=There are 365 days in a year., letters are in the alphabet=There are 26 letters in the alphabet.,"
    "legs does a spider have=A spider has 8 legs., legs does a dog have=A dog has 4 legs.,"
    "legs does a cat have=A cat has 4 legs., legs does an ant have=An ant has 6 legs.,"
    "legs does a bird have=A bird has 2 legs., legs does a bee have=A bee has 6 legs.,"
    "arms does an octopus have=An octopus has 8 arms., wheels does a car have=A car has 4 wheels.,"
    "wheels does a bicycle have=A bicycle has 2 wheels., sides does a triangle have=A triangle has 3 sides.,"
    "sides does a square have=A square has 4 sides., fingers are on one hand=There are 5 fingers on one hand.,"
    "seasons are in a year=There are 4 seasons in a year., continents are there=There are 7 continents.,"
    "planets are in the solar system=There are 8 planets in the solar system.,"
    "years are in a century=There are 100 years in a century., things are in a dozen=There are 12 things in a dozen.,"
    "centimetres are in a metre=There are 100 centimetres in a metre.,"
    "metres are in a kilometre=There are 1000 metres in a kilometre.,"
    "bits are in a byte=There are 8 bits in a byte., strings does a violin have=A violin has 4 strings."
)

# --- the help desk: answer, then the things a user may want; the last two are held out ----------
HELP: list[tuple[str, list[str]]] = [
    (
        "Run: rwkv-edge convert model.pth model.gguf. It reads .pth and .safetensors files and needs"
        " no PyTorch. The default type is f16.",
        words(
            "convert a model, convert a checkpoint, convert a .pth file, convert a pth to gguf,"
            "make a gguf file, turn a .pth into a gguf, convert an RWKV-7 checkpoint, convert my model,"
            "convert a .safetensors file, convert safetensors to gguf, import a model, use a pth file,"
            "get a gguf from a checkpoint, convert weights"
        ),
    ),
    (
        "Run: rwkv-edge quantize model.gguf model-q4.gguf --type q4_0. The types are f16, q8_0, q5_1,"
        " q5_0, q4_1 and q4_0.",
        words(
            "quantize a model, quantize my model, quantise a model, make a model smaller,"
            "make a q4_0 file, shrink a model, compress a model, quantize a gguf, quantize to int8,"
            "quantize to int4, quantize a gguf file, get a 4-bit model, make a q8_0 model, reduce the size of a model"
        ),
    ),
    (
        "Run: rwkv-edge chat model.gguf. Without a file it talks to me, the bundled demo model.",
        words(
            "chat with a model, chat, start a chat, start a conversation, talk to a model,"
            "talk to my model, open a chat, chat with my own model, run a chat, chat with another model,"
            "begin a chat, have a conversation with a model"
        ),
    ),
    (
        'Run: rwkv-edge generate model.gguf -p "Once" -n 64. With -p - it reads the prompt from stdin.',
        words(
            "generate text, generate some text, continue a prompt, complete a prompt, complete a text,"
            "run one prompt, write text from a prompt, use a prompt from stdin, read a prompt from stdin,"
            "generate 64 tokens, generate from a prompt, get a completion, continue a text"
        ),
    ),
    (
        "Run: rwkv-edge bench model.gguf -t 1,2 -p 512 -n 128. It prints tokens per second; --json"
        " prints JSON.",
        words(
            "measure the speed, bench a model, benchmark a model, run a benchmark, test the speed,"
            "measure tokens per second, see how fast it is, benchmark my computer, bench, time a model,"
            "check the speed of a model, find out how fast my model runs"
        ),
    ),
    (
        "Run: rwkv-edge info model.gguf. It shows the architecture, shapes, types, size and tokenizer.",
        words(
            "see what is in a file, inspect a model, look into a gguf, show the size of a model,"
            "get information about a model, see the tensors, see the types of a model,"
            "print facts about a model, see the architecture, get info on a model, inspect a gguf file,"
            "see which tokenizer a model has"
        ),
    ),
    (
        "In the chat type /save talk.state. Later /load talk.state brings the conversation back.",
        words(
            "save a conversation, save the conversation, save this chat, save the chat, keep a chat for later,"
            "store the conversation, save the state, keep this conversation, load a conversation,"
            "load a chat, load a saved chat, continue a saved chat, restore a conversation,"
            "store this chat, reload an old chat"
        ),
    ),
    (
        "Type /reset. The conversation starts again from nothing.",
        words(
            "reset the chat, reset the conversation, start over, start again, clear the conversation,"
            "clear the chat, make you forget everything, begin a new conversation, forget this chat,"
            "reset, wipe the memory, restart the conversation"
        ),
    ),
    (
        "Type /exit or press Ctrl-D.",
        words(
            "leave the chat, leave, exit, quit, quit the chat, exit the chat, close the chat, stop the program,"
            "end the program, get out of here, close this program, end the chat"
        ),
    ),
    (
        "Press Ctrl-C. The answer stops and the conversation stays.",
        words(
            "stop an answer, stop the answer, interrupt you, interrupt an answer, cut an answer short,"
            "stop you from talking, make you stop, cancel an answer, break off an answer,"
            "stop a long answer, abort an answer"
        ),
    ),
    (
        "Type /help. It lists /reset, /save, /load and /exit.",
        words(
            "see the chat commands, get help, list the commands, see all commands, get help in the chat,"
            "find the commands of the chat, see the slash commands, see a list of commands, show the help"
        ),
    ),
    (
        "Use -t. For example: rwkv-edge chat model.gguf -t 2. One thread for each real core is best.",
        words(
            "set the number of threads, choose threads, use more threads, pick the threads, use two threads,"
            "use all cores, use only one thread, change the thread count, run on two cores, select the number of threads,"
            "set threads"
        ),
    ),
    (
        "q8_0 is nearly as good as f16 at half the size. q4_0 is the smallest. Try q5_1 in between.",
        words(
            "choose a quantization type, choose a type, pick the best type, decide between q8_0 and q4_0,"
            "choose between q4_0 and q5_1, pick a quantization, know which type is best, select a type,"
            "find the right type, choose the right quantization, pick a type"
        ),
    ),
    (
        "Like this:\nfrom rwkv_edge import Model\nmodel = Model()\nsession = model.session()\n"
        'for text in session.generate("Once", max_tokens=64):\n    print(text, end="")',
        words(
            "use Python, use it from Python, use rwkv-edge in Python, call you from Python, use the Python API,"
            "write a Python program with rwkv-edge, load a model in Python, generate text in Python,"
            "run a model from Python, use rwkv_edge as a library, use the Python package, work with it in Python"
        ),
    ),
    (
        'Use session.feed(tokens, logits="all"). It returns one row of logits for each token.',
        words(
            "get the logits, get logits in Python, see the logits, read the logits of all tokens,"
            "get the logits of every token, compute logits, get all logits, feed tokens"
        ),
    ),
    (
        "Use model.tokenizer.encode(text) for the tokens and model.tokenizer.decode(tokens) for the text.",
        words(
            "tokenize a text, encode text, turn text into tokens, decode tokens, use the tokenizer,"
            "get the tokens of a text, turn tokens into text, tokenize text in Python, get tokens"
        ),
    ),
    (
        "session.state gives a copy of the state. State.save(path) writes it and State.load(path) reads it.",
        words(
            "save the state in Python, copy the state, get the state in Python, read the state,"
            "keep the state of a session, load a state in Python, use the state from Python,"
            "get a copy of the state"
        ),
    ),
    (
        "Use --temperature. For example: rwkv-edge chat --temperature 0.7. Lower is calmer, higher is wilder.",
        words(
            "set the temperature, change the temperature, make the answers more random, make you more creative,"
            "make the answers less random, lower the temperature, use another temperature, raise the temperature,"
            "adjust the temperature"
        ),
    ),
    (
        "Use --top-p and --top-k. For example: rwkv-edge chat --top-p 0.5 --top-k 50.",
        words(
            "set top-p, set top-k, use top-p, use top-k, change the sampling, set the sampling options,"
            "change top-p, use nucleus sampling, change top-k"
        ),
    ),
    (
        "Use --seed. For example: rwkv-edge chat --seed 1. The same seed gives the same answers.",
        words(
            "set the seed, get the same answer twice, make the answers repeatable, use a fixed seed,"
            "get the same text again, use a seed, make it reproducible, fix the seed"
        ),
    ),
    (
        'Use --system. For example: rwkv-edge chat model.gguf --system "Answer briefly."',
        words(
            "set a system prompt, give a system text, use a system prompt, set the system text,"
            "add a system message, give you instructions at the start, write a system prompt,"
            "pass a system text"
        ),
    ),
    (
        "Use --max-tokens. For example: rwkv-edge chat --max-tokens 200.",
        words(
            "limit the length of an answer, get shorter answers, get longer answers, set the maximum length,"
            "limit the answer, set the number of tokens, make the answers shorter, limit the number of tokens"
        ),
    ),
    (
        "Use --presence-penalty and --frequency-penalty. They make repeated words less likely.",
        words(
            "avoid repetition, stop repetitions, stop you from repeating yourself, use a penalty,"
            "set the presence penalty, set the frequency penalty, get fewer repeated words,"
            "reduce repetition, use penalties"
        ),
    ),
    (
        "In the source folder run: pip install . and then: rwkv-edge chat.",
        words(
            "install rwkv-edge, install it, install this program, set up rwkv-edge, install the package,"
            "get rwkv-edge running, build rwkv-edge, install you, set it up on another computer"
        ),
    ),
    (
        "Use --vocab. For example: rwkv-edge convert model.pth model.gguf --vocab vocab.model.",
        words(
            "give a vocabulary, use another vocabulary, set the vocabulary, convert with another tokenizer,"
            "use my own tokenizer, add a vocabulary file, use a custom vocabulary, pass a vocab file"
        ),
    ),
    (
        "Get an RWKV-7 checkpoint as .pth or .safetensors, run rwkv-edge convert, then rwkv-edge chat.",
        words(
            "use a bigger model, get a better model, run a larger model, use a real model, run another RWKV model,"
            "get smarter answers, run a big model, try a larger model"
        ),
    ),
]
# --- "what is X": answer, then names of X; the last one is held out when there are four -----------
TERMS: list[tuple[str, list[str]]] = [
    (
        "RWKV is a recurrent language model. It reads one token after another and keeps all it knows"
        " of the text in a state of fixed size, so long texts cost no extra memory.",
        words("RWKV, an RWKV, an RWKV model, the RWKV architecture"),
    ),
    (
        "RWKV-7 is the seventh version of RWKV. Its state learns from each token by a small update rule.",
        words("RWKV-7, RWKV 7, RWKV version 7, RWKV7"),
    ),
    (
        "rwkv-edge runs RWKV language models on a CPU, without a graphics card and without PyTorch.",
        words("rwkv-edge, rwkv edge, this program, the rwkv-edge program"),
    ),
    (
        "GGUF is a file format for models. One file holds the weights, the vocabulary and the settings.",
        words("GGUF, a GGUF file, a gguf, the GGUF format"),
    ),
    (
        "Quantization stores weights with fewer bits. The model gets smaller and faster and loses a little quality.",
        words("quantization, quantisation, quantizing, model quantization"),
    ),
    (
        "The state is the memory of an RWKV model. It has a fixed size and holds the whole conversation.",
        words("the state, a state, the RWKV state, the state of a model"),
    ),
    (
        "A token is a piece of text, often a word or a part of one. Models read and write tokens.",
        words("a token, tokens, a text token, a single token"),
    ),
    (
        "A tokenizer cuts text into tokens and joins tokens to text again.",
        words("a tokenizer, the tokenizer, tokenization, a text tokenizer"),
    ),
    (
        "A language model guesses the next token of a text, again and again. That is how it writes.",
        words("a language model, an LLM, a large language model, language modelling"),
    ),
    (
        "A transformer looks back at all earlier tokens. RWKV keeps a state of fixed size instead.",
        words("a transformer, the difference to a transformer, a transformer model, transformers"),
    ),
    (
        "The temperature says how random the answers are. Lower is calmer, higher is wilder.",
        words("temperature, the temperature, sampling temperature, the temperature option"),
    ),
    (
        "q4_0 is a type with 4 bits for each weight and one scale for 32 weights: small and fast.",
        words("q4_0, the type q4_0, the q4_0 type, q4_0 quantization"),
    ),
    (
        "q8_0 is a type with 8 bits for each weight and one scale for 32 weights: nearly as good as f16.",
        words("q8_0, the type q8_0, the q8_0 type, q8_0 quantization"),
    ),
    (
        "f16 is a 16-bit number format. It is the default type of rwkv-edge convert.",
        words("f16, fp16, the type f16, half precision"),
    ),
]
