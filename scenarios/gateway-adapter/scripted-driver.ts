// SPDX-License-Identifier: Apache-2.0

/**
 * A compute driver in the test process that does as it is told, and remembers what it was asked:
 *
 *   driver.on("CreateSandbox", fail(9, "no gpu"));    driver.hang("GetCapabilities");
 *   driver.snapshot(id, { conditions: [ready("True")] });    driver.deleted(id);    driver.called("StopSandbox");
 *
 * Without a script it is a driver whose every sandbox is made, runs, stops and goes at once.
 */
import { rmSync } from "node:fs";
import * as grpc from "@grpc/grpc-js";
import { computeDriver } from "../../proto/contract.ts";
import type { ComputeDriverHandlers } from "../../proto/v0.0/types/openshell/compute/v1/ComputeDriver.ts";
import type { DriverCondition } from "../../proto/v0.0/types/openshell/compute/v1/DriverCondition.ts";
import type { DriverPlatformEvent } from "../../proto/v0.0/types/openshell/compute/v1/DriverPlatformEvent.ts";
import type {
  DriverSandbox,
  DriverSandbox__Output,
} from "../../proto/v0.0/types/openshell/compute/v1/DriverSandbox.ts";
import type { DriverSandboxStatus } from "../../proto/v0.0/types/openshell/compute/v1/DriverSandboxStatus.ts";
import type { WatchSandboxesEvent } from "../../proto/v0.0/types/openshell/compute/v1/WatchSandboxesEvent.ts";

export type Method = keyof ComputeDriverHandlers & string;

/** What any request may hold, as far as scenarios ask. */
export interface DriverRequest {
  sandbox?: DriverSandbox__Output;
  sandbox_id?: string;
  sandbox_name?: string;
  workspace?: string;
}

/**
 * How a method is answered: with a response; for WatchSandboxes, `{ events }` with which the stream begins.
 * One that rejects with `{ code, details }` fails the call.
 */
export type Answer = (request: DriverRequest) => object | Promise<object>;
export type Script = Partial<Record<Method, Answer>>;

/** An error answer: `driver.on("StopSandbox", fail(13, "no"))`. */
export const fail =
  (code: grpc.status, details: string): Answer =>
  () =>
    Promise.reject({ code, details });

/** A condition of type Ready. */
export const ready = (status: string, reason = "", message = ""): DriverCondition => ({
  type: "Ready",
  status,
  reason,
  message,
});

/** The status of a sandbox whose Ready condition is as given. */
export const readyIs = (status: string, reason = "", message = ""): DriverSandboxStatus => ({
  conditions: [ready(status, reason, message)],
});

/** One call that arrived; `at` is `performance.now()` in milliseconds. */
export interface DriverCall {
  method: Method;
  request: DriverRequest;
  at: number;
}

const METHODS = [
  "GetCapabilities",
  "GetGatewayListenerRequirements",
  "ValidateSandboxCreate",
  "CreateSandbox",
  "GetSandbox",
  "ListSandboxes",
  "StopSandbox",
  "StartSandbox",
  "DeleteSandbox",
  "EnsureWorkspace",
  "DeleteWorkspace",
] as const satisfies Method[];

type WatchCall = grpc.ServerWritableStream<unknown, WatchSandboxesEvent>;

/** A compute driver that answers what a scenario scripts. */
export class ScriptedDriver {
  /** Every call, in the order of arrival. */
  calls: DriverCall[] = [];
  /** What CreateSandbox was asked for and agreed to, by id. */
  readonly created = new Map<string, DriverSandbox__Output>();
  #script: Script = {};
  #watches = new Set<WatchCall>();
  #server = new grpc.Server();

  private constructor(readonly path: string) {}

  /** Serves the contract on a Unix socket. */
  static async listen(path: string, script: Script = {}): Promise<ScriptedDriver> {
    const driver = new ScriptedDriver(path);
    driver.#script = { ...script };
    const handlers: grpc.UntypedServiceImplementation = {
      WatchSandboxes: (call: WatchCall) => void driver.#watch(call),
    };
    for (const method of METHODS) {
      const serve: grpc.handleUnaryCall<DriverRequest, object> = (call, callback) =>
        void driver.#outcomeOf(method, call.request).then(
          (response) => callback(null, response),
          (error: grpc.ServiceError) => callback(error),
        );
      handlers[method] = serve as grpc.UntypedHandleCall;
    }
    driver.#server.addService(computeDriver().ComputeDriver.service, handlers);
    await new Promise<void>((done, failed) =>
      driver.#server.bindAsync(`unix:${path}`, grpc.ServerCredentials.createInsecure(), (error) =>
        error ? failed(error) : done(),
      ),
    );
    return driver;
  }

  // What it is told

  /** From now on `method` is answered so. */
  on(method: Method, answer: Answer): void {
    this.#script[method] = answer;
  }

  /** From now on `method` is not answered. Returns what answers all that wait, as usual, and ends this. */
  hang(method: Method): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    const held: Answer = async (request) => {
      await promise;
      return this.#usual(method)(request);
    };
    this.on(method, held);
    return () => {
      if (this.#script[method] === held) this.usual(method);
      resolve();
    };
  }

  /** From now on these methods, or all, are answered as if nothing had been scripted. */
  usual(...methods: Method[]): void {
    if (methods.length === 0) this.#script = {};
    for (const method of methods) delete this.#script[method];
  }

  // What it tells its watchers

  /** Reports a sandbox; under its own name, unless another is given. */
  snapshot(id: string, status: DriverSandboxStatus | null, differing: DriverSandbox = {}): void {
    this.send({ sandbox: { sandbox: this.sandbox(id, status, differing) } });
  }

  deleted(id: string): void {
    this.send({ deleted: { sandbox_id: id } });
  }

  platformEvent(id: string, event: DriverPlatformEvent): void {
    this.send({ platform_event: { sandbox_id: id, event } });
  }

  /** Sends an event to every watcher. */
  send(event: WatchSandboxesEvent): void {
    for (const watch of this.#watches) watch.write(event);
  }

  /** Ends every watch: with OK, or with an error's code and words. */
  endWatches(error?: { code: grpc.status; details: string }): void {
    for (const watch of this.#watches)
      if (error) watch.emit("error", error);
      else watch.end();
    this.#watches.clear();
  }

  /** A sandbox as this driver knows it. */
  sandbox(id: string, status: DriverSandboxStatus | null, differing: DriverSandbox = {}): DriverSandbox {
    return { id, name: this.created.get(id)?.name ?? "unknown", workspace: "default", status, ...differing };
  }

  // What it was asked

  /** The calls of a method, those about one sandbox or all. */
  called(method: Method, id?: string): DriverCall[] {
    const about = ({ request }: DriverCall) =>
      id === undefined || id === request.sandbox_id || id === request.sandbox?.id;
    return this.calls.filter((call) => call.method === method && about(call));
  }

  /** The calls without those by which a gateway looks around on its own, at its start and every minute. */
  get asked(): DriverCall[] {
    const looks = new Set<Method>(["ListSandboxes", "GetSandbox", "WatchSandboxes"]);
    return this.calls.filter(({ method }) => !looks.has(method));
  }

  get watching(): boolean {
    return this.#watches.size > 0;
  }

  // Its life

  /** Breaks every connection off; the process is still there, and listens no more. */
  close(): void {
    this.#server.forceShutdown();
    this.#watches.clear();
    rmSync(this.path, { force: true });
  }

  async #outcomeOf(method: Method, request: DriverRequest): Promise<object> {
    this.calls.push({ method, request, at: performance.now() });
    return (this.#script[method] ?? this.#usual(method))(request);
  }

  async #watch(call: WatchCall): Promise<void> {
    call.on("error", () => {});
    call.on("cancelled", () => this.#watches.delete(call));
    try {
      const { events = [] } = (await this.#outcomeOf("WatchSandboxes", {})) as {
        events?: WatchSandboxesEvent[];
      };
      call.sendMetadata(new grpc.Metadata());
      for (const event of events) call.write(event);
      this.#watches.add(call);
    } catch (error) {
      call.emit("error", error);
    }
  }

  /** A driver that does as it is told. */
  #usual(method: Method): Answer {
    const usual: Script = {
      GetCapabilities: () => CAPABILITIES,
      CreateSandbox: ({ sandbox }) => {
        this.created.set(sandbox!.id, sandbox!);
        return {};
      },
      GetSandbox: ({ sandbox_id }) => ({ sandbox: this.sandbox(sandbox_id!, readyIs("True")) }),
      DeleteSandbox: ({ sandbox_id }) => {
        this.deleted(sandbox_id!);
        return { deleted: true };
      },
    };
    return usual[method] ?? (() => ({}));
  }
}

/** What it says of itself, unless scripted. */
export const CAPABILITIES = {
  driver_name: "scripted",
  driver_version: "1.2.3",
  default_image: "image:default",
  gateway_manages_lifecycle: true,
};

/** The script of a driver that manages lifecycle itself: a gateway that starts leaves its sandboxes as they are. */
export const OWN_LIFECYCLE: Script = {
  GetCapabilities: () => ({ ...CAPABILITIES, gateway_manages_lifecycle: false }),
};
