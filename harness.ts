#!/usr/bin/env bun
// SPDX-License-Identifier: Apache-2.0

/**
 * Proves that an OpenShell gateway drives a standalone compute driver over a Unix socket.
 *
 *   scenario ─▶ gateway ─▶ [tap] ─▶ driver ─▶ engine ─▶ supervisor in a sandbox ─▶ gateway
 *
 * This is the door. Scenarios import what is exported here; a shell runs `bun harness.ts help`.
 * Each of gateway, driver, engine and supervisor is the real program or a fake from `fakes/`, started in the same way.
 * A keeper, a process of its own, owns them: `bun test` kills its children when one test times out and cleans up
 * nothing when it is killed itself; the keeper stops everything once the last connection to it closes.
 */
// oxlint-disable-next-line import/no-unassigned-import -- it refuses to go on where something is not installed
import "./installed.ts";
import { fail } from "./harness/base/errors.ts";
import { main } from "./harness/command-line.ts";

export { HarnessError } from "./harness/base/errors.ts";
export { DRIVER_NAME } from "./harness/base/settings.ts";
export { eventually, within } from "./harness/base/waiting.ts";
export { Gateway, phaseOf, refusal, Sandbox, type SandboxOptions } from "./harness/client/gateway.ts";
export { RunningStack } from "./harness/running-stack.ts";
export { type Given, scenario } from "./harness/scenario.ts";
export { parts } from "./harness/shared-run.ts";

// Not awaited here: a command may import this module, which must be complete by then.
if (import.meta.main) void main(process.argv.slice(2)).then((code) => process.exit(code), fail);
