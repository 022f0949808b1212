// SPDX-License-Identifier: Apache-2.0

/** The driver's life, once the engine is reached: subscribe, bind, serve until a signal, let what is under way end. */
import { renameSync, unlinkSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { computeDriver } from "../../proto/contract.ts";
import type { Logger } from "../log.ts";
import { Creation } from "./creation.ts";
import type { Host } from "./host.ts";
import type { Podman } from "./podman.ts";
import { Sandboxes } from "./sandboxes.ts";
import { Service } from "./service.ts";
import { type Settings, StartError } from "./settings.ts";
import { fileAt, prepareSocket } from "./socket.ts";

/** How much longer than a stop may take the calls under way are awaited, in seconds. */
const DRAIN_SECONDS = 35;
/** How long clients may take to hang up after that, in milliseconds. */
const HANG_UP_MS = 200;

/** Resolves when it serves. @throws StartError, EngineError */
export async function serve(
  version: string,
  settings: Settings,
  podman: Podman,
  host: Host,
  log: Logger,
): Promise<void> {
  const creation = new Creation(settings, podman, host, log);
  const sandboxes = new Sandboxes(settings, podman, creation, log);
  await sandboxes.watch.subscribe();
  const service = new Service(version, settings, host, creation, sandboxes, log);
  // Statistics that nobody reads are a tenth of what a call costs.
  const server = new Server({ "grpc.enable_channelz": 0 });
  server.addService(computeDriver().ComputeDriver.service, service.handlers());
  const socket = settings.bindSocket && resolve(settings.bindSocket);
  await bind(server, socket ?? "", settings.bindAddress);
  const ours = socket && fileAt(socket);
  log.info("Starting Podman compute driver", socket ? { socket } : { address: settings.bindAddress });

  const end = async (): Promise<void> => {
    if (service.draining) process.exit(1);
    service.draining = true;
    log.info("Received shutdown signal, draining in-flight requests");
    const closed = new Promise<void>((done) => server.tryShutdown(() => done()));
    sandboxes.watch.end();
    const deadline = performance.now() + (settings.stopTimeout + DRAIN_SECONDS) * 1000;
    const waiting = (): boolean => service.inFlight > 0 && performance.now() < deadline;
    while (waiting()) await Bun.sleep(5);
    // A client may keep its connection for ever; its calls have been answered.
    await Promise.race([closed, Bun.sleep(HANG_UP_MS)]);
    server.forceShutdown();
    // Another driver may have taken the path over; then it is not ours to remove.
    if (socket && fileAt(socket) === ours) unlinkSync(socket);
    process.exit(0);
  };
  process.on("SIGTERM", () => void end());
  process.on("SIGINT", () => void end());
}

/** Binds to a socket, or without one to an address. */
async function bind(server: Server, socket: string, address: string): Promise<void> {
  if (socket) prepareSocket(socket);
  // Bound under another name and renamed once it listens: whoever sees the socket can connect to it.
  const bound = join(dirname(socket), `.${process.pid}`);
  const umask = process.umask(0o177);
  await new Promise<void>((ready, fail) => {
    server.bindAsync(socket ? `unix:${bound}` : address, ServerCredentials.createInsecure(), (error) =>
      error ? fail(new StartError(`bind driver socket ${socket || address}: ${error.message}`)) : ready(),
    );
  });
  process.umask(umask);
  if (socket) renameSync(bound, socket);
}
