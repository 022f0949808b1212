// SPDX-License-Identifier: Apache-2.0

/** The driver that is checked: one that the harness starts, or one that runs already. */
import type { Connection } from "../runtime/connection.ts";
import { HarnessError } from "../base/errors.ts";
import type { Settings } from "../base/settings.ts";
import { asksFor } from "../base/command.ts";
import { Engine } from "../runtime/engine.ts";
import { socketPath, socketProblem, whyUnreachable } from "../base/socket.ts";
import { clipped } from "../base/text.ts";
import { type Backend, commands, podman } from "./backend.ts";
import { Driver } from "./driver.ts";
import type { Subject } from "./trial.ts";

/** How a check may look behind the driver: `--backend podman`, or commands. */
export interface BackendChoice {
  backend?: string;
  "backend-list"?: string;
  "backend-kill"?: string;
  "backend-remove"?: string;
}

/** Beside the driver's own stop timeout. */
const STOP_MARGIN_MS = 10_000;

/** The driver that was started did not come up: no check can be asked of it. The message says how, with its last words. */
export class NotReady extends HarnessError {}

/**
 * Starts the driver that the settings name, without a gateway, and finds out what can be done to it.
 * @throws NotReady when it ends, serves no socket, or does not answer GetCapabilities in time.
 */
export async function startSubject(
  keeper: Connection,
  settings: Settings,
  choice: BackendChoice = {},
): Promise<Subject> {
  const spec = { order: "driver-only", tap: false, probe: true } as const;
  const stack = await keeper.call("startStack", spec).catch((error: Error) => {
    throw error.message.startsWith("driver: ") ? new NotReady(error.message) : error;
  });
  const { sandboxImage } = await keeper.call("hello");
  const { engineSocket, driverSocket } = stack;
  return {
    socket: driverSocket,
    own: new Driver(driverSocket),
    backend: await chooseBackend(choice, engineSocket),
    image: engineSocket ? sandboxImage : settings.sandboxImage,
    stopMs: Number(settings.stopTimeout) * 1_000 + STOP_MARGIN_MS,
    owned: {
      keeper,
      stack,
      hasPodmanSocket: engineSocket !== "",
      isolates: !settings.driverCmd || asksFor(settings.driverCmd, "network", "state"),
    },
  };
}

/** A driver that somebody else started. @throws HarnessError when nothing is there. */
export async function runningSubject(
  path: string,
  settings: Settings,
  choice: BackendChoice,
): Promise<Subject> {
  const socket = socketPath(path);
  const problem = socketProblem(path) || (await whyUnreachable(socket));
  if (problem) throw new HarnessError(`--socket: ${problem}: ${clipped(path)}`);
  const backend = await chooseBackend(choice, settings.podmanSocket);
  if (backend?.name === "podman") await new Engine(settings.podmanSocket).info();
  return {
    socket,
    own: new Driver(socket),
    backend,
    image: settings.sandboxImage,
    stopMs: Number(settings.stopTimeout) * 1_000 + STOP_MARGIN_MS,
  };
}

async function chooseBackend(choice: BackendChoice, engineSocket: string): Promise<Backend | undefined> {
  const { backend, "backend-list": list, "backend-kill": kill, "backend-remove": remove } = choice;
  if (list || kill || remove) {
    if (backend) throw new HarnessError("--backend and --backend-list, -kill or -remove exclude each other");
    return commands({ list, kill, remove });
  }
  if (backend && backend !== "podman") throw new HarnessError(`--backend: podman is known, got ${backend}`);
  if (backend && !engineSocket)
    throw new HarnessError(
      "--backend podman: OPENSHELL_PODMAN_SOCKET must name the Podman that the driver uses",
    );
  return engineSocket ? podman(new Engine(engineSocket)) : undefined;
}
