"""RoAd."""

from peft import RoadConfig

from .case import Case


def road(base, common):
    return RoadConfig(group_size=8, target_modules=base.names.lora, **common)


def road_2(base, common):
    return RoadConfig(variant="road_2", group_size=4, init_weights=False, target_modules=base.names.lora, **common)


def road_4(base, common):
    return RoadConfig(variant="road_4", group_size=4, target_modules=base.names.lora, **common)


def angles(name, noise):
    if "road_alpha" in name:
        return 1.0 + 0.2 * noise
    return 0.5 * noise if "road_theta" in name else None


CASES = {
    "road": Case(road, bases=("bert",), value=angles),
    "road_2": Case(road_2, bases=("llama",), value=angles),
    "road_4": Case(road_4, bases=("bert",), value=angles),
}
