"""What people ask a small model about: the nouns of `questions.py`, and more of the world."""

from __future__ import annotations

from questions import NOUNS

MORE = """
acorn airplane airport alligator ant apartment apron aquarium artist astronaut autumn avalanche avocado badger bakery
balloon bandage bat beach beaver beetle bicycle blueberry bookshelf bow bracelet breakfast broccoli broom bubble
buffalo bulldozer bunny butterfly cactus calendar camera campfire canoe canyon cave cheetah chimney chocolate
circus cloudburst coach coconut comet compass computer cookie coral corn costume cricket crocodile crystal cucumber
cupboard desert diamond dinosaur dolphin donut dragonfly drill eagle earthquake eclipse eel elbow elephant elevator
envelope factory ferry festival firefighter fireplace firework flamingo flashlight flood flute fog fossil fountain
freckle furnace galaxy garlic giraffe glacier glasses globe glue gorilla grasshopper greenhouse hailstone hamburger
hamster harbour hedgehog helicopter hippo hobby holiday honey hurricane iceberg igloo invention jellyfish jigsaw joke
kangaroo kayak keyboard koala lantern lava leopard lightning lighthouse lime lobster magnet mango maple marble melon
mermaid meteor microscope milkshake mineral mitten mosquito moth motorcycle mountain mouse museum mushroom newspaper
nightingale noodle octopus olive omelette onion orchard orchestra ostrich otter pancake panda parachute parade
passport peacock peanut pebble pelican penguin pepper piano picnic pineapple planet playground plum poet pocketwatch
polar_bear popcorn porcupine postman pumpkin pyramid python quilt raccoon radio rainbow raincoat raspberry raven
recipe reindeer restaurant rhinoceros riddle robot rocket sandcastle satellite scarecrow scarf scientist scissors
scooter seahorse seal seasons shadow shark sheep shipwreck skateboard skeleton sledge sloth snowflake snowman
spaceship spinach sponge starfish steam stethoscope strawberry submarine sunflower sunrise surfboard swamp
swimming_pool tadpole telescope thermometer thunder toaster tomato toothbrush tornado tortoise tractor traffic_light
treehouse tulip tunnel typewriter unicorn vacuum vegetable volcano vulture waffle walnut walrus waterfall watermelon
weather whirlpool wolf woodpecker wrench xylophone yoghurt zebra zoo
""".split()

SUBJECTS = """
air arithmetic astronomy baking baseball basketball birthdays bravery camping chess Christmas cleaning colours cooking
courage dancing dreams drawing electricity energy evaporation exercise fairness fishing football friendship gardening
geography gravity growing_up happiness health history homework honesty ice insects kindness knitting language laughter
learning light listening magic manners mathematics maths medicine memory metal money music nature numbers
oxygen painting patience peace photosynthesis pirates poetry politeness rain reading recycling safety sailing salt sand
school science sharing singing sleep snow soccer sound space spelling spring stars stories sugar summer swimming
teamwork teeth telling_the_truth tennis the_alphabet the_brain the_desert the_Earth the_heart the_internet the_jungle
the_Moon the_ocean the_rainforest the_sea the_seasons the_sky the_solar_system the_Sun the_wind the_world time travel
trust water wind winter wood writing
""".split()


def topics() -> list[str]:
    """All of them, each as it stands behind "about": "a whale", "gravity"."""
    things = sorted({*NOUNS, *(noun.replace("_", " ") for noun in MORE)})
    return [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in things] + [
        subject.replace("_", " ") for subject in SUBJECTS
    ]
