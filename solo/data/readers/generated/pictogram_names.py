"""The pictograms of the quickstart by kind: names of emoji as Unicode has them."""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split(","))


KINDS: dict[str, tuple[str, ...]] = {
    "animal": _names("""
        monkey, gorilla, orangutan, dog, poodle, wolf, fox, raccoon, cat, lion, tiger, leopard, horse, zebra, deer,
        bison, ox, water buffalo, cow, pig, boar, ram, ewe, goat, camel, llama, giraffe, elephant, mammoth, rhinoceros,
        hippopotamus, mouse, rat, hamster, rabbit, chipmunk, beaver, hedgehog, bat, bear, koala, panda, sloth, otter,
        skunk, kangaroo, badger, turkey, chicken, rooster, bird, penguin, dove, eagle, duck, swan, owl, dodo, flamingo,
        peacock, parrot, goose, frog, crocodile, turtle, lizard, snake, dragon, sauropod, T-Rex, whale, dolphin, seal,
        fish, tropical fish, blowfish, shark, octopus, crab, lobster, shrimp, squid, snail, butterfly, bug, ant,
        honeybee, beetle, cricket, spider, scorpion, mosquito, fly, worm"""),
    "plant": _names("""
        cherry blossom, rosette, rose, hibiscus, sunflower, blossom, tulip, hyacinth, lotus, bouquet, seedling,
        potted plant, evergreen tree, deciduous tree, palm tree, cactus, sheaf of rice, herb, shamrock,
        four leaf clover, maple leaf, fallen leaf, leaf fluttering in wind, mushroom, Christmas tree"""),
    "food": _names("""
        grapes, melon, watermelon, tangerine, lemon, banana, pineapple, mango, red apple, green apple, pear, peach,
        cherries, strawberry, blueberries, kiwi fruit, tomato, olive, coconut, avocado, eggplant, potato, carrot,
        ear of corn, hot pepper, bell pepper, cucumber, leafy green, broccoli, garlic, onion, peanuts, beans, chestnut,
        bread, croissant, baguette bread, pretzel, bagel, pancakes, waffle, cheese wedge, meat on bone, poultry leg,
        bacon, hamburger, french fries, pizza, hot dog, sandwich, taco, burrito, egg, cooking, popcorn, butter, salt,
        canned food, rice ball, cooked rice, spaghetti, sushi, fried shrimp, dango, fortune cookie, ice cream, doughnut,
        cookie, birthday cake, shortcake, cupcake, pie, chocolate bar, candy, lollipop, custard, honey pot"""),
    "vehicle": _names("""
        locomotive, train, metro, tram, bus, trolleybus, minibus, ambulance, fire engine, police car, taxi, automobile,
        sport utility vehicle, pickup truck, delivery truck, articulated lorry, tractor, racing car, motorcycle,
        motor scooter, auto rickshaw, bicycle, kick scooter, skateboard, sailboat, canoe, speedboat, passenger ship,
        ferry, motor boat, ship, airplane, small airplane, parachute, helicopter, suspension railway, aerial tramway,
        rocket, flying saucer"""),
    "building": _names("""
        stadium, classical building, hut, house, house with garden, office building, post office, hospital, bank, hotel,
        love hotel, convenience store, school, department store, factory, Japanese castle, castle, wedding,
        Tokyo tower, church, mosque, hindu temple, synagogue, kaaba, derelict house, tent, circus tent"""),
    "clothing": _names("""
        glasses, sunglasses, goggles, lab coat, safety vest, necktie, t-shirt, jeans, scarf, gloves, coat, socks, dress,
        kimono, sari, one-piece swimsuit, briefs, shorts, bikini, woman’s clothes, purse, handbag, clutch bag,
        backpack, thong sandal, man’s shoe, running shoe, hiking boot, flat shoe, high-heeled shoe, woman’s sandal,
        ballet shoes, woman’s boot, crown, woman’s hat, top hat, graduation cap, billed cap, military helmet"""),
    "instrument": _names("""
        saxophone, accordion, guitar, musical keyboard, trumpet, violin, banjo, drum, long drum, maracas, flute, bell,
        harp, postal horn"""),
    "clock": _names("""
        one o’clock, two o’clock, three o’clock, four o’clock, five o’clock, six o’clock, seven o’clock,
        eight o’clock, nine o’clock, ten o’clock, eleven o’clock, twelve o’clock, watch, alarm clock, stopwatch,
        timer clock, mantelpiece clock, hourglass done"""),
}
