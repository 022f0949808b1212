// SPDX-License-Identifier: Apache-2.0

/** `up`: keep a stack in the foreground, to which `bun test` and `with` attach, until Ctrl-C or SIGTERM. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describeParts, EXIT, Run } from "../harness.ts";
import type { Command } from "../harness.ts";
import { Keeper, serveControl } from "../keeper/keeper.ts";

export const command: Command = async (settings) => {
  const run = Run.create(settings).make();
  const ended = Promise.withResolvers<void>();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => ended.resolve());
  const keeper = await Keeper.open(run, settings);
  try {
    console.log(describeParts(keeper.setup.parts));
    const stack = await keeper.startStack({});
    await serveControl(run, Promise.resolve(keeper), {});
    writeFileSync(join(run.folder, "up"), "");
    console.log(`gateway  ${stack.endpoint}   (OPENSHELL_GATEWAY_ENDPOINT)`);
    console.log(`driver   ${stack.driverSocket}`);
    console.log(`logs     ${stack.logs.gateway}\n         ${stack.logs.driver}`);
    console.log("Ctrl-C ends it. In a second terminal: bun test scenarios/external-podman");
    await ended.promise;
  } finally {
    for (const line of await keeper.close()) console.log(`removed ${line}`);
  }
  return EXIT.ok;
};
