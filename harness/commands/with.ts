// SPDX-License-Identifier: Apache-2.0

/** `with -- COMMAND`: run any command against a stack, the one that `up` keeps or one of its own. */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { attach, type Connection, withKeeper } from "../runtime/connection.ts";
import type { Command } from "../command-line.ts";
import { EXIT, HarnessError } from "../base/errors.ts";
import type { Settings } from "../base/settings.ts";
import { programProblem } from "../base/command.ts";
import { describeParts, findCli } from "../runtime/places.ts";
import { readable } from "../base/readable.ts";
import { COMMAND_MARK } from "../runtime/marks.ts";
import { ENDING, outlivingToo } from "../base/signals.ts";
import type { StackInfo } from "../runtime/stack.ts";

export const command: Command = async (settings, argv) => {
  if (argv.length === 0)
    throw new HarnessError("with: a command was expected, as in `bun harness.ts with -- env`");
  const [program = ""] = argv;
  const problem = programProblem(program);
  if (problem) throw new HarnessError(`with: ${problem}`);
  const attached = await attach(settings);
  if (attached) {
    const { stack, parts } = await attached.call("hello");
    console.error(describeParts(parts));
    return runCommand(argv, settings, attached, stack ?? (await attached.call("startStack", {})));
  }
  const { result: code, left } = await withKeeper(settings, async (keeper) => {
    console.error(describeParts((await keeper.call("hello")).parts));
    return runCommand(argv, settings, keeper, await keeper.call("startStack", {}));
  });
  for (const line of left) console.error(readable(`left behind, removed: ${line}`));
  return code === 0 && left.length > 0 ? EXIT.leftovers : code;
};

/** Runs it with the terminal's own streams; signals go on to it. Resolves with its exit code, 128 + n for a signal. */
async function runCommand(
  argv: string[],
  settings: Settings,
  keeper: Connection,
  stack: StackInfo,
): Promise<number> {
  const state = join(keeper.run.folder, "command-home");
  // Not with the folders above it: a run that is gone by now must not come back.
  if (!existsSync(state)) mkdirSync(state, { mode: 0o700 });
  const cli = findCli(settings);
  const mark = crypto.randomUUID();
  await keeper.call("beginCommand", mark);
  const child = Bun.spawn(outlivingToo(argv), {
    env: {
      ...process.env,
      OPENSHELL_GATEWAY_ENDPOINT: stack.endpoint,
      OPENSHELL_TELEMETRY_ENABLED: "false",
      OPENSHELL_PROVISION_TIMEOUT: process.env.OPENSHELL_PROVISION_TIMEOUT ?? "300",
      // The CLI remembers gateways there: a user's own must neither be read nor changed.
      XDG_CONFIG_HOME: join(state, "config"),
      XDG_STATE_HOME: join(state, "state"),
      XDG_DATA_HOME: join(state, "data"),
      ...(cli ? { OPENSHELL_BIN: cli } : {}),
      [COMMAND_MARK]: mark,
    },
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  });
  const forward = (signal: NodeJS.Signals) => child.kill(signal);
  for (const signal of ENDING) process.on(signal, forward);
  const code = await child.exited;
  for (const signal of ENDING) process.off(signal, forward);
  // What it has left in the background on purpose is its user's. A keeper that is gone has told of that already.
  await keeper.call("endCommand", mark).catch(() => {});
  return code;
}
