// SPDX-License-Identifier: Apache-2.0

/** `help [VERB]`: the verbs and every setting, or one verb. */
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import { SETTINGS } from "../base/settings.ts";
import { PLACEHOLDERS } from "../base/command.ts";
import { FAULTS } from "../runtime/faults/rules.ts";

const VERBS = `bun harness.ts VERB [settings]

  test [SUITE...]            run scenarios (of external-podman, say), or all tests
    [-t PATTERN] [-- ARGS]   only those whose title matches; ARGS go to bun test
  check                      does a driver keep the contract, on its socket alone?
    --driver CMD             one that the harness starts, with placeholders such as {socket}
    --socket PATH            one that runs already; without either, the settings' driver, or the fake
    --only DC-70..79         ids, ranges and groups (E); may be repeated
    --list                   the rules, and nothing else
    --backend podman         what can look behind a driver on --socket; or commands, with {id} for a sandbox:
    --backend-list CMD  --backend-kill CMD  --backend-remove CMD
  mutants [--only PATTERN]   prove that those checks bite, with drivers broken on purpose
    --each                   each of them alone with each check: slow, and takes nothing for granted
  parity [-t PATTERN]        gateway-adapter on the fake gateway and on the real one: where they differ
  up                         keep a stack; bun test and \`with\` attach to it
    --fault 'METHOD: WHAT'   have calls between gateway and driver go wrong; may be repeated
  with -- COMMAND            run any command against a stack
  soak                       many sandboxes live their lives: latencies, leaks, broken promises
    [--sandboxes 200] [--parallel 16] [--minutes 10] [--chaos [--seed N]]
  report [DIR|FILE]          make a report of a run, of its results.json
    --format html            or junit, ctrf, markdown, github; matrix makes one table of several runs
    [--out FILE]             where to; standard output without it, and for a page report.html beside the results
  diff A B                   what changed from one run to another: verdicts, durations, versions
  doctor                     what is here, what is missing, and how to get it
  sweep [--run FOLDER]       remove what dead runs left, or that one
  bench                      measure the harness
  help [VERB]                this, or what is to be said of one verb (VERB --help does the same)

Settings: flag, environment variable, default, meaning`;

export const command: Command = async (_settings, [verb]) => {
  if (verb !== undefined) {
    const section = sectionOf(verb);
    if (!section) throw new HarnessError(`help: there is no verb ${verb}. See \`bun harness.ts help\``);
    console.log(section.join("\n"));
    if (verb === "check") showPlaceholders();
    if (verb === "up") showFaults();
    console.log("\nEvery verb takes the settings, too: bun harness.ts help");
    return EXIT.ok;
  }
  console.log(VERBS);
  const width = Math.max(...SETTINGS.map(([name]) => name.length));
  const variables = Math.max(...SETTINGS.map(([, variable]) => variable.length));
  for (const [name, variable, , fallback, meaning] of SETTINGS) {
    const initial = fallback ? ` (${fallback})` : "";
    console.log(`  --${name.padEnd(width)}  ${variable.padEnd(variables)}  ${meaning}${initial}`);
  }
  showPlaceholders();
  showFaults();
  return EXIT.ok;
};

/** What `VERBS` says of one verb, a line each; undefined if it is none. */
function sectionOf(verb: string): string[] | undefined {
  const lines = VERBS.split("\n").filter((line) => line.startsWith("  "));
  const first = lines.findIndex((line) => line.startsWith(`  ${verb} `));
  if (first < 0 || verb === "") return undefined;
  const rest = lines.slice(first + 1);
  const next = rest.findIndex((line) => !line.startsWith("    "));
  return [lines[first]!, ...rest.slice(0, next < 0 ? rest.length : next)];
}

function showPlaceholders(): void {
  console.log("\nPlaceholders of a driver's command; {socket} must be in it:");
  console.log(`  ${PLACEHOLDERS.map((name) => `{${name}}`).join(" ")}`);
}

function showFaults(): void {
  console.log(`\nFaults: METHOD: WHAT, and which calls: ', on call N', ', from call N' or ', N times'`);
  for (const fault of FAULTS) console.log(`  ${fault}`);
}
