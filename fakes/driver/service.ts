// SPDX-License-Identifier: Apache-2.0

/** The contract's methods, and what becomes of an error in one. */
import * as grpc from "@grpc/grpc-js";
import type { ComputeDriverHandlers } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverSandbox__Output as Sandbox } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { WatchSandboxesEvent } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";
import type { WatchSandboxesRequest__Output as WatchRequest } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesRequest.ts";
import type { Logger } from "../log.ts";
import { invalid, Status, statusOf, unavailable } from "../status.ts";
import type { Creation } from "./creation.ts";
import { type Host, listenerRequirements } from "./host.ts";
import { EngineError } from "./podman.ts";
import type { Sandboxes } from "./sandboxes.ts";
import type { Settings } from "./settings.ts";
import type { Watcher } from "./watch.ts";

export class Service {
  /** Calls under way, so that the end can wait for them. */
  inFlight = 0;
  draining = false;

  constructor(
    private readonly version: string,
    private readonly settings: Settings,
    private readonly host: Host,
    private readonly creation: Creation,
    private readonly sandboxes: Sandboxes,
    private readonly log: Logger,
  ) {}

  handlers(): ComputeDriverHandlers {
    const { sandboxes, creation, settings, host, version } = this;
    return {
      GetCapabilities: this.#unary(() => ({
        driver_name: "podman",
        driver_version: version,
        default_image: settings.sandboxImage,
        gateway_manages_lifecycle: true,
      })),
      GetGatewayListenerRequirements: this.#unary(() => ({
        requirements: listenerRequirements(settings, host),
      })),
      ValidateSandboxCreate: this.#unary(async (request) => {
        await creation.validate(requireSandbox(request));
        return {};
      }),
      GetSandbox: this.#unary(async (request) => ({ sandbox: await sandboxes.get(requireId(request)) })),
      ListSandboxes: this.#unary(async () => ({ sandboxes: await sandboxes.list() })),
      CreateSandbox: this.#unary(async (request) => {
        await sandboxes.create(requireSandbox(request));
        return {};
      }),
      StopSandbox: this.#unary(async (request) => {
        await sandboxes.stop(requireId(request));
        return {};
      }),
      StartSandbox: this.#unary(async (request) => {
        await sandboxes.start(requireId(request));
        return {};
      }),
      DeleteSandbox: this.#unary(async (request) => ({
        deleted: await sandboxes.delete(requireId(request)),
      })),
      WatchSandboxes: (call) => void this.#watch(call),
      EnsureWorkspace: this.#unary(() => ({})),
      DeleteWorkspace: this.#unary(() => ({})),
    };
  }

  #unary<Request, Response>(work: (request: Request) => Response | Promise<Response>) {
    return async (
      { request }: grpc.ServerUnaryCall<Request, Response>,
      done: grpc.sendUnaryData<Response>,
    ): Promise<void> => {
      this.inFlight++;
      try {
        this.#refuseWhenDraining();
        done(null, await work(request));
      } catch (error) {
        done(this.#status(error));
      } finally {
        this.inFlight--;
      }
    };
  }

  async #watch(call: grpc.ServerWritableStream<WatchRequest, WatchSandboxesEvent>): Promise<void> {
    const { watch } = this.sandboxes;
    const watcher: Watcher = {
      send: (event) => void call.write(event),
      fail: (status) => call.emit("error", status),
    };
    call.on("cancelled", () => watch.remove(watcher));
    try {
      this.#refuseWhenDraining();
      await watch.subscribe();
      // A gateway awaits the headers before it listens, and there may be nothing to send for long.
      call.sendMetadata(new grpc.Metadata());
      await watch.add(watcher);
    } catch (error) {
      watch.remove(watcher);
      call.emit("error", this.#status(error));
    }
  }

  #refuseWhenDraining(): void {
    if (this.draining) throw unavailable("driver is shutting down");
  }

  #status(error: unknown): Status {
    if (error instanceof Status) return error;
    if (error instanceof EngineError) return error.toStatus();
    this.log.error("unexpected failure", { error: Bun.inspect(error) });
    return statusOf(error);
  }
}

const requireId = ({ sandbox_id }: { sandbox_id: string }): string => {
  if (!sandbox_id) throw invalid("sandbox_id is required");
  return sandbox_id;
};

const requireSandbox = ({ sandbox }: { sandbox: Sandbox | null }): Sandbox => {
  if (!sandbox) throw invalid("sandbox is required");
  return sandbox;
};
