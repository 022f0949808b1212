// SPDX-License-Identifier: Apache-2.0

/**
 * The contract between gateway, driver and supervisor, and the two ways to call it: `unary` and `streaming`. Harness and
 * fakes both stand on this file.
 *
 * All of it comes from the .proto files in v0.0: `bun install` makes the message types of them, in v0.0/types, and the
 * codecs (compile.ts). Conventions: field names as on the wire, 64-bit integers as decimal strings, enums by name, unset
 * messages `null`.
 */
import type * as grpcJs from "@grpc/grpc-js";
import { grpc, status } from "./grpc.ts";
import { type Fields, mustBeMessage } from "./strict.ts";
import type { ProtoGrpcType as ComputeDriverPackage } from "./v0.0/types/compute_driver.ts";
import type { ProtoGrpcType as OpenShellPackage } from "./v0.0/types/openshell.ts";

/** A message type: what protobufjs's generators make of one. */
export interface Message {
  encode(message: object): { finish(): Uint8Array };
  decode(bytes: Uint8Array): object;
  fromObject(message: object): object;
  toObject(message: object, options: object): object;
  fields: Fields;
}

/** A method of a service, as codecs.ts lists it. */
export interface Method {
  request: Message;
  requestStream: boolean;
  response: Message;
  responseStream: boolean;
}

/** The services of a package as grpc-js wants them. */
function load<Package>(packageName: string): Package {
  const { services }: typeof import("./v0.0/codecs.ts") = require("./v0.0/codecs.ts");
  const ofPackage = Object.entries(services).filter(([name]) => name.startsWith(`${packageName}.`));
  const clients = ofPackage.map(([name, methods]) => [name, clientOf(name, methods)] as const);
  return nested(Object.fromEntries(clients)) as Package;
}

/**
 * What every client does, unless it is told otherwise. A call is tried once: where the server has gone away, grpc-js
 * tries again in microtasks, without end, and the event loop stops. A proxy is for others than those on this machine.
 */
const CLIENT_OPTIONS: grpcJs.ClientOptions = { "grpc.enable_retries": 0, "grpc.enable_http_proxy": 0 };

function clientOf(service: string, methods: Record<string, Method>): grpcJs.ServiceClientConstructor {
  const Client = grpc().makeGenericClientConstructor(serviceDefinition(service, methods), service);
  return class extends Client {
    constructor(
      address: string,
      credentials: grpcJs.ChannelCredentials,
      options?: Partial<grpcJs.ClientOptions>,
    ) {
      super(address, credentials, { ...CLIENT_OPTIONS, ...options });
    }
  };
}

/** Full names as grpc-js nests them: `openshell.v1.OpenShell` is `OpenShell` in `v1` in `openshell`. */
function nested(byName: Record<string, unknown>): object {
  const root: Record<string, object> = {};
  for (const [name, value] of Object.entries(byName)) {
    const path = name.split(".");
    const last = path.pop()!;
    let at: Record<string, unknown> = root;
    for (const part of path) at = (at[part] ??= {}) as Record<string, unknown>;
    at[last] = value;
  }
  return root;
}

function serviceDefinition(service: string, methods: Record<string, Method>): grpcJs.ServiceDefinition {
  const definitions = Object.entries(methods).map(([name, method]) => {
    const request = codec(method.request);
    const response = codec(method.response);
    const definition: grpcJs.MethodDefinition<object, object> & { originalName: string } = {
      path: `/${service}/${name}`,
      originalName: name.charAt(0).toLowerCase() + name.slice(1),
      requestStream: method.requestStream,
      responseStream: method.responseStream,
      requestSerialize: request.serialize,
      requestDeserialize: request.deserialize,
      responseSerialize: response.serialize,
      responseDeserialize: response.deserialize,
    };
    return [name, definition] as const;
  });
  return Object.fromEntries(definitions);
}

/** How messages are read: see the conventions above. */
export const CONVENTIONS = { longs: String, enums: String, defaults: true, oneofs: true };

const codec = (type: Message) => ({
  serialize: (message: object) => Buffer.from(type.encode(type.fromObject(message)).finish()),
  deserialize: (bytes: Buffer) => {
    mustBeMessage(bytes, type.fields);
    return type.toObject(type.decode(bytes), CONVENTIONS);
  },
});

/** The driver contract: `ComputeDriver` is the client's constructor, `ComputeDriver.service` what a server adds. */
export const computeDriver = (): Pick<ComputeDriverPackage["openshell"]["compute"]["v1"], "ComputeDriver"> =>
  (loaded.driver ??= load<ComputeDriverPackage>("openshell.compute.v1")).openshell.compute.v1;

/** The gateway's public API: `OpenShell` is the client's constructor, `OpenShell.service` what a server adds. */
export const openshell = (): Pick<OpenShellPackage["openshell"]["v1"], "OpenShell"> =>
  (loaded.gateway ??= load<OpenShellPackage>("openshell.v1")).openshell.v1;

/** Loads all that a call needs now, while there is something to wait for. */
export const loadGrpc = (): void => void [computeDriver(), openshell()];

const loaded: { driver?: ComputeDriverPackage; gateway?: OpenShellPackage } = {};

/** How one call is made. `deadlineMs` is the time that the whole call may take, in milliseconds; `signal` cancels it. */
export interface CallOptions {
  deadlineMs: number;
  metadata?: grpcJs.Metadata;
  signal?: AbortSignal;
}

/** A unary method of a generated client, in the shortest of its overloads: the one TypeScript infers from. */
type UnaryMethod<Request, Response> = (
  request: Request,
  callback: grpcJs.requestCallback<Response>,
) => grpcJs.ClientUnaryCall;

/** A call that did not end with OK. It is shown where it was asked for, which grpc-js's own error buries. */
export class CallError extends Error implements Pick<grpcJs.ServiceError, "code" | "details"> {
  override name = "CallError";
  code = status.UNKNOWN;
  details = "";

  /** Takes over what grpc-js says of the call. */
  because(error: grpcJs.ServiceError): this {
    const { code, details } = known(error);
    return Object.assign(this, { code, details, message: `${code} ${codeName(code)}: ${details}` });
  }
}

/** What a message is said to be that came compressed though nothing was agreed on, or that cannot be decompressed. */
export const UNDECOMPRESSED = "Received a compressed message, and it cannot be decompressed";

/** How a call ended. Of a message that cannot be decompressed grpc-js tells neither code nor details. */
export function known({ code, details }: Partial<grpcJs.StatusObject>): { code: status; details: string } {
  return typeof code === "number"
    ? { code, details: details ?? "" }
    : { code: status.INTERNAL, details: UNDECOMPRESSED };
}

/**
 * Calls a unary method and resolves with its response.
 * @throws CallError, with DEADLINE_EXCEEDED once `deadlineMs` have passed.
 */
export function unary<Request, Response>(
  client: grpcJs.Client,
  method: UnaryMethod<Request, Response>,
  request: Request,
  { deadlineMs, metadata = new (grpc().Metadata)(), signal }: CallOptions,
): Promise<Response> {
  const failure = new CallError();
  Error.captureStackTrace(failure, unary);
  return new Promise((resolve, reject) => {
    const call = method as unknown as (...args: unknown[]) => grpcJs.ClientUnaryCall;
    const cancel = () => made.cancel();
    const done: grpcJs.requestCallback<Response> = (error, response) => {
      signal?.removeEventListener("abort", cancel);
      if (error) reject(failure.because(error));
      else resolve(response as Response);
    };
    const made = call.call(client, request, metadata, { deadline: Date.now() + deadlineMs }, done);
    signal?.addEventListener("abort", cancel, { once: true });
  });
}

/**
 * The items of a server stream. Leaving the loop cancels the call, which `for await` over a grpc-js stream does not.
 * @throws CallError when the stream does not end with OK.
 */
export async function* streaming<Item>(call: grpcJs.ClientReadableStream<Item>): AsyncGenerator<Item> {
  const failure = new CallError();
  try {
    yield* call as AsyncIterable<Item>;
  } catch (error) {
    throw failure.because(error as grpcJs.ServiceError);
  } finally {
    // The cancel itself is reported as an error event, which would end the process if nobody listened.
    call.on("error", () => {});
    call.cancel();
  }
}

/** The name of a status code, such as "NOT_FOUND". */
export const codeName = (code: status): string => status[code] ?? `code ${code}`;

/**
 * What came of a call, in one line: "OK", or the code's name and the message, as in "NOT_FOUND: sandbox not found".
 * @throws what the call throws, when that is no status.
 */
export async function outcomeOf(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return "OK";
  } catch (error) {
    const { code, details } = error as CallError;
    if (typeof code !== "number") throw error;
    return `${codeName(code)}: ${details}`;
  }
}
