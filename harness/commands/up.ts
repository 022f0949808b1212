// SPDX-License-Identifier: Apache-2.0

/** `up [--fault 'METHOD: WHAT']...`: keep a stack, to which `bun test` and `with` attach, until Ctrl-C or SIGTERM. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "../command-line.ts";
import { EXIT } from "../base/errors.ts";
import { withKeeper } from "../runtime/connection.ts";
import { describeParts } from "../runtime/places.ts";
import { parseFault } from "../runtime/faults/rules.ts";
import { ENDING } from "../base/signals.ts";
import { say } from "../base/readable.ts";

export const command: Command = async (settings, _args, { fault = "" }) => {
  const given = fault.split("\n").filter(Boolean);
  const faults = given.map(parseFault);
  const { left } = await withKeeper(settings, async (keeper, run) => {
    console.log(describeParts((await keeper.call("hello")).parts));
    const stack = await keeper.call("startStack", {});
    await keeper.call("rules", stack.id, faults);
    // Whoever attaches is told of them.
    writeFileSync(join(run.folder, "up"), given.join("\n"));
    console.log(`gateway  ${stack.endpoint}   (OPENSHELL_GATEWAY_ENDPOINT)`);
    console.log(`driver   ${stack.driverSocket}`);
    console.log(`logs     ${stack.logs.gateway}\n         ${stack.logs.driver}`);
    console.log("Ctrl-C ends it. In a second terminal: bun test scenarios/external-podman");
    // Not before: a signal amid the start ends this process, and with it, by its keeper, what was started.
    const ended = Promise.withResolvers<void>();
    for (const signal of ENDING) process.on(signal, () => ended.resolve());
    // Waiting for a signal alone would not keep this process alive.
    keeper.socket.ref();
    await Promise.race([ended.promise, keeper.closed]);
  });
  for (const line of left) say(`removed ${line}`);
  return EXIT.ok;
};
