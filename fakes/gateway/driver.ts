// SPDX-License-Identifier: Apache-2.0

/**
 * The remote compute driver on its Unix socket. As the real gateway: the socket is awaited for 30 s at start, after that
 * every call dials again if need be, and no call has a deadline, so a driver that hangs hangs its caller.
 */
import * as grpc from "@grpc/grpc-js";
import { connect } from "node:net";
import { computeDriver, streaming, unary } from "../../proto/contract.ts";
import type { ComputeDriverClient } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverSandbox__Output } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { GatewayListenerRequirement__Output } from "../../proto/v0.0/types/openshell/compute/v1/GatewayListenerRequirement.ts";
import type { GetCapabilitiesResponse__Output } from "../../proto/v0.0/types/openshell/compute/v1/GetCapabilitiesResponse.ts";
import type { WatchSandboxesEvent__Output } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import type { Logger } from "../log.ts";
import { Status, statusOf, unavailable } from "../status.ts";
import { Failure, osError } from "./failure.ts";
import { asTonicSays } from "./tonic.ts";

const DIAL_RETRY_MS = 250;
const NO_DEADLINE = { deadlineMs: Infinity };

type Call<Request, Response> = (
  client: ComputeDriverClient,
) => (request: Request, callback: grpc.requestCallback<Response>) => grpc.ClientUnaryCall;

export class RemoteDriver {
  #client: ComputeDriverClient | undefined;
  capabilities!: GetCapabilitiesResponse__Output;
  requirements: GatewayListenerRequirement__Output[] = [];

  private constructor(
    /** The configured name, which is not the one that the driver advertises. */
    readonly name: string,
    private readonly socketPath: string,
  ) {}

  /**
   * Waits for the socket, then asks what the driver is and where its sandboxes will call. Both answers stay for the
   * life of the gateway, whoever serves the socket later.
   * @throws Failure when nobody listens in time, or the driver answers with an error
   */
  static async connect(
    name: string,
    socketPath: string,
    dialSeconds: number,
    log: Logger,
  ): Promise<RemoteDriver> {
    const driver = new RemoteDriver(name, socketPath);
    try {
      await driver.#awaitSocket(dialSeconds);
      driver.capabilities = await driver.call((client) => client.GetCapabilities, {});
      log.info("Compute driver connected", {
        configured_driver: name,
        advertised_driver: driver.capabilities.driver_name,
        in_tree: ["kubernetes", "podman", "docker", "vm"].includes(name),
      });
      driver.requirements = await driver.#listenerRequirements();
      return driver;
    } catch (error) {
      driver.close();
      throw Failure.execution(`failed to create compute runtime: ${startupMessage(statusOf(error))}`);
    }
  }

  async #awaitSocket(seconds: number): Promise<void> {
    for (const deadline = performance.now() + seconds * 1000; ; await Bun.sleep(DIAL_RETRY_MS)) {
      try {
        return await dial(this.socketPath);
      } catch {
        if (performance.now() < deadline) continue;
        throw unavailable(
          `failed to connect to remote compute driver socket '${this.socketPath}' within ${seconds}s: transport error`,
        );
      }
    }
  }

  async #listenerRequirements(): Promise<GatewayListenerRequirement__Output[]> {
    try {
      return (await this.call((client) => client.GetGatewayListenerRequirements, {})).requirements;
    } catch (error) {
      if (statusOf(error).code === grpc.status.UNIMPLEMENTED) return [];
      throw error;
    }
  }

  /**
   * Makes one call: `driver.call((client) => client.StopSandbox, { sandbox_id, sandbox_name })`.
   * @throws Status with the driver's own code and message, or UNAVAILABLE when nobody listens
   */
  async call<Request, Response>(method: Call<Request, Response>, request: Request): Promise<Response> {
    const client = await this.#connected();
    try {
      return await unary(client, method(client), request, NO_DEADLINE);
    } catch (error) {
      throw asTonicSays(statusOf(error));
    }
  }

  /** The driver's view of one sandbox, or undefined when it has none. */
  async getSandbox(id: string, name: string): Promise<DriverSandbox__Output | undefined> {
    try {
      const { sandbox } = await this.call((client) => client.GetSandbox, {
        sandbox_id: id,
        sandbox_name: name,
      });
      if (sandbox && sandbox.id !== id) {
        throw new Status(
          grpc.status.INTERNAL,
          `compute driver returned sandbox '${sandbox.id}' for requested id '${id}'`,
        );
      }
      return sandbox ?? undefined;
    } catch (error) {
      if (statusOf(error).code === grpc.status.NOT_FOUND) return undefined;
      throw error;
    }
  }

  /**
   * The events of one watch, until the driver ends it, it breaks, or `signal` fires.
   * @param onBegun told when the driver has begun to answer
   */
  async *watch(signal: AbortSignal, onBegun: () => void): AsyncGenerator<WatchSandboxesEvent__Output> {
    const call = (await this.#connected()).WatchSandboxes({});
    call.once("metadata", onBegun);
    const cancel = () => call.cancel();
    signal.addEventListener("abort", cancel);
    try {
      yield* streaming(call);
    } catch (error) {
      if (!signal.aborted) throw asTonicSays(statusOf(error));
    } finally {
      signal.removeEventListener("abort", cancel);
    }
  }

  close(): void {
    this.#client?.close();
  }

  /** grpc-js holds a failed connection back for a while; a fresh client after a successful dial does not wait. */
  async #connected(): Promise<ComputeDriverClient> {
    const state = this.#client?.getChannel().getConnectivityState(false);
    if (this.#client && state === grpc.connectivityState.READY) return this.#client;
    await dial(this.socketPath);
    const { TRANSIENT_FAILURE, SHUTDOWN } = grpc.connectivityState;
    const now = this.#client?.getChannel().getConnectivityState(false);
    if (this.#client && now !== TRANSIENT_FAILURE && now !== SHUTDOWN) return this.#client;
    this.#client?.close();
    const { ComputeDriver } = computeDriver();
    return (this.#client = new ComputeDriver(`unix:${this.socketPath}`, grpc.credentials.createInsecure(), {
      "grpc.use_local_subchannel_pool": 1,
      "grpc.max_receive_message_length": 4 * 1024 * 1024,
    }));
  }
}

/**
 * Connects to a Unix socket and hangs up.
 * @throws Status UNAVAILABLE with the operating system's words, which grpc-js would hide
 */
function dial(path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve();
    });
    socket.once("error", (error) => reject(unavailable(osError(error))));
  });
}

/** How the real program words a driver's status when it gives up at start. */
function startupMessage({ code, details }: Status): string {
  if (code === grpc.status.ALREADY_EXISTS) return "sandbox already exists";
  return details;
}
