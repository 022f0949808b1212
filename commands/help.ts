// SPDX-License-Identifier: Apache-2.0

/** `help`: the verbs and every setting. */
import { EXIT, SETTINGS } from "../harness.ts";
import type { Command } from "../harness.ts";

const VERBS = `bun harness.ts VERB [settings]

  test [SUITE...]            run scenarios (of external-podman, say), or all tests
    [-t PATTERN] [-- ARGS]   only those whose title matches; ARGS go to bun test
  up                         keep a stack; bun test and \`with\` attach to it
  with -- COMMAND            run any command against a stack
  doctor                     what is here, what is missing, and how to get it
  sweep                      remove what dead runs left
  bench                      measure the harness

Settings: flag, environment variable, default, meaning`;

export const command: Command = async () => {
  console.log(VERBS);
  const width = Math.max(...SETTINGS.map(([name]) => name.length));
  const variables = Math.max(...SETTINGS.map(([, variable]) => variable.length));
  for (const [name, variable, , fallback, meaning] of SETTINGS) {
    const initial = fallback ? ` (${fallback})` : "";
    console.log(`  --${name.padEnd(width)}  ${variable.padEnd(variables)}  ${meaning}${initial}`);
  }
  return EXIT.ok;
};
