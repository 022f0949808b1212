// SPDX-License-Identifier: Apache-2.0

/** Names for sandboxes that come without one. */

const ADJECTIVES =
  `able amber bold brave brisk calm clear clever cosmic crisp daring eager early fair fancy fine fleet
fresh gentle glad golden grand happy hardy humble jolly keen kind lively loyal lucid lucky mellow merry mighty modest
neat nimble noble patient placid polite proud quick quiet rapid ready robust royal sharp shiny silent silver smooth
snug solid steady still sunny swift tender tidy tranquil true trusty upbeat valid vivid warm wise witty zesty`.split(
    /\s+/,
  );

const ANIMALS =
  `badger bat bear beaver bee bison bobcat camel cat cod condor coyote crab crane crow deer dingo dog dove
duck eagle eel egret elk falcon ferret finch fox frog gecko gibbon goat goose gopher gull hare hawk heron horse ibex
impala jackal jay kite koala lark lemur lion lizard llama lynx magpie marten mole moose moth mouse newt ocelot otter
owl ox panda parrot perch pigeon puffin puma quail rabbit raven robin salmon seal shrew skunk sloth snail sparrow
spider squid stoat stork swan tapir tern tiger toad trout turtle viper vole walrus weasel whale wolf wombat wren yak
zebra`.split(/\s+/);

const pick = (words: string[]) => words[Math.floor(Math.random() * words.length)]!;

/** Two letters or digits: words alone would collide within hundreds of sandboxes, and nothing would try again. */
const suffix = () =>
  Math.floor(36 ** 2 + Math.random() * 35 * 36 ** 2)
    .toString(36)
    .slice(1);

/** An adjective, an animal and a suffix, in the 19 characters that a routable name may have. */
export const generateName = (): string => `${pick(ADJECTIVES)}-${pick(ANIMALS)}-${suffix()}`;
