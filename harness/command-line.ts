// SPDX-License-Identifier: Apache-2.0

/** The command line: verbs, their flags, and what runs them. */
import { exemptLoopback } from "./base/environment.ts";
import { HarnessError } from "./base/errors.ts";
import { endWithStarter } from "./base/parent.ts";
import { knowEnvironment } from "./base/secrets.ts";
import { type OwnFlags, readSettings, type Settings } from "./base/settings.ts";
import { clipped } from "./base/text.ts";
import { endAsFirstProcess, unlessEnding } from "./runtime/aftermath.ts";
import { watchMemory } from "./runtime/memory.ts";

/** A verb of the command line: its arguments, and its own flags by name. Resolves with the exit code. */
export type Command = (settings: Settings, args: string[], own: Record<string, string>) => Promise<number>;

/** The verbs, and the flags that each has beside the settings. */
const VERBS: Record<string, OwnFlags> = {
  test: { t: { type: "string", short: "t" } },
  up: { fault: { type: "string", multiple: true } },
  with: {},
  doctor: {},
  sweep: { run: { type: "string" }, guard: { type: "boolean" } },
  bench: {},
  soak: {
    sandboxes: { type: "string" },
    minutes: { type: "string" },
    chaos: { type: "boolean" },
    seed: { type: "string" },
  },
  report: { format: { type: "string" }, out: { type: "string" } },
  diff: {},
  mutants: { only: { type: "string" }, each: { type: "boolean" } },
  parity: { t: { type: "string", short: "t" } },
  check: {
    driver: { type: "string" },
    socket: { type: "string" },
    only: { type: "string", multiple: true },
    list: { type: "boolean" },
    backend: { type: "string" },
    "backend-list": { type: "string" },
    "backend-kill": { type: "string" },
    "backend-remove": { type: "string" },
  },
  help: {},
  keep: {},
};

/** The verbs that take arguments which are no flags. */
const TAKES_ARGUMENTS = new Set(["test", "with", "report", "diff", "help", "keep"]);

const HELP = ["--help", "-h"];

/** Code must be so many times hotter than usual to be compiled: most verbs are over before that pays. */
const JIT_RELUCTANCE = 100;

export async function main(argv: string[]): Promise<number> {
  endWithStarter();
  exemptLoopback(process.env);
  Bun.unsafe.setJITPolicy(JIT_RELUCTANCE);
  const [first = "help", ...rest] = argv;
  const verb = HELP.includes(first) ? "help" : first;
  const ownFlags = Object.hasOwn(VERBS, verb) && VERBS[verb];
  if (!ownFlags) throw new HarnessError(`Unknown verb ${clipped(verb)}. See \`bun harness.ts help\``);
  // What follows `--` is the verb's own business.
  const split = rest.indexOf("--");
  const [ours, theirs] = split < 0 ? [rest, []] : [rest.slice(0, split), rest.slice(split + 1)];
  if (verb !== "help" && ours.some((arg) => HELP.includes(arg))) return main(["help", verb]);
  const { settings, args, own } = readSettings(ours, process.env, ownFlags);
  knowEnvironment(settings.driverEnv);
  const [stray] = TAKES_ARGUMENTS.has(verb) ? [] : [...args, ...theirs];
  if (stray !== undefined)
    throw new HarnessError(
      `${verb}: unexpected ${clipped(stray) || "empty argument"}. See \`bun harness.ts help ${verb}\``,
    );
  if (verb !== "keep") {
    watchMemory({ as: "command" });
    endAsFirstProcess(settings);
  }
  const { command } = (await import(`./commands/${verb}.ts`)) as { command: Command };
  return command(settings, [...args, ...theirs], own).finally(unlessEnding);
}
