// SPDX-License-Identifier: Apache-2.0

/**
 * The contract between gateway, driver and supervisor, loaded from the .proto files beside this one, and the two ways
 * to call it: `unary` and `streaming`. Harness and fakes both stand on this file.
 *
 * The message types come from the same files: `bun install` runs proto-loader-gen-types into `v0.0/types/`.
 * Conventions: field names as on the wire, 64-bit integers as decimal strings, enums by name, unset messages `null`.
 */
import * as grpc from "@grpc/grpc-js";
import protobuf from "protobufjs";
import computeDriverProto from "./v0.0/compute_driver.proto" with { type: "text" };
import datamodelProto from "./v0.0/datamodel.proto" with { type: "text" };
import openshellProto from "./v0.0/openshell.proto" with { type: "text" };
import sandboxProto from "./v0.0/sandbox.proto" with { type: "text" };
import type { ProtoGrpcType as ComputeDriverPackage } from "./v0.0/types/compute_driver.ts";
import type { ProtoGrpcType as OpenShellPackage } from "./v0.0/types/openshell.ts";

/**
 * The services of some .proto files as grpc-js wants them. proto-loader's `loadSync` does the same and more: it makes
 * descriptors of every message for reflection, which takes three times as long as all the rest, in each process that
 * the harness starts. The texts are imported so that a compiled program has them inside.
 */
function load<Package>(packageName: string, texts: string[]): Package {
  const root = protobuf.Root.fromJSON(protobuf.common.get("google/protobuf/struct.proto")!);
  for (const text of texts) protobuf.parse(text, root, { keepCase: true });
  const services = root.lookup(packageName) as protobuf.Namespace;
  return grpc.loadPackageDefinition(
    Object.fromEntries(
      services.nestedArray
        .filter((item) => item instanceof protobuf.Service)
        .map((service) => [service.fullName.slice(1), serviceDefinition(service)]),
    ),
  ) as Package;
}

function serviceDefinition(service: protobuf.Service): grpc.ServiceDefinition {
  return Object.fromEntries(
    service.methodsArray.map((method) => {
      const request = codec(() => resolved(method).resolvedRequestType!);
      const response = codec(() => resolved(method).resolvedResponseType!);
      const definition: grpc.MethodDefinition<object, object> & { originalName: string } = {
        path: `/${service.fullName.slice(1)}/${method.name}`,
        originalName: method.name.charAt(0).toLowerCase() + method.name.slice(1),
        requestStream: Boolean(method.requestStream),
        responseStream: Boolean(method.responseStream),
        requestSerialize: request.serialize,
        requestDeserialize: request.deserialize,
        responseSerialize: response.serialize,
        responseDeserialize: response.deserialize,
      };
      return [method.name, definition];
    }),
  );
}

const resolved = (method: protobuf.Method) => method.resolve() as protobuf.Method;

/** A type is looked up when it is first used: a process uses few of all that there are. */
function codec(typeOf: () => protobuf.Type) {
  const options = { longs: String, enums: String, defaults: true, oneofs: true };
  return {
    serialize(message: object): Buffer {
      const type = typeOf();
      return Buffer.from(type.encode(type.fromObject(message)).finish());
    },
    deserialize(bytes: Buffer): object {
      const type = typeOf();
      return type.toObject(type.decode(bytes), options);
    },
  };
}

/** The driver contract: `ComputeDriver` is the client's constructor, `ComputeDriver.service` what a server adds. */
export const computeDriver = (): Pick<ComputeDriverPackage["openshell"]["compute"]["v1"], "ComputeDriver"> =>
  (loaded.driver ??= load<ComputeDriverPackage>("openshell.compute.v1", [computeDriverProto])).openshell
    .compute.v1;

/** The gateway's public API: `OpenShell` is the client's constructor, `OpenShell.service` what a server adds. */
export const openshell = (): Pick<OpenShellPackage["openshell"]["v1"], "OpenShell"> =>
  (loaded.gateway ??= load<OpenShellPackage>("openshell.v1", [datamodelProto, sandboxProto, openshellProto]))
    .openshell.v1;

const loaded: { driver?: ComputeDriverPackage; gateway?: OpenShellPackage } = {};

/** How one call is made. `deadlineMs` is the time that the whole call may take, in milliseconds. */
export interface CallOptions {
  deadlineMs: number;
  metadata?: grpc.Metadata;
}

/** A unary method of a generated client, in the shortest of its overloads: the one TypeScript infers from. */
type UnaryMethod<Request, Response> = (
  request: Request,
  callback: grpc.requestCallback<Response>,
) => grpc.ClientUnaryCall;

/**
 * Calls a unary method and resolves with its response.
 * @throws grpc.ServiceError with `code`, and DEADLINE_EXCEEDED once `deadlineMs` have passed.
 */
export function unary<Request, Response>(
  client: grpc.Client,
  method: UnaryMethod<Request, Response>,
  request: Request,
  { deadlineMs, metadata = new grpc.Metadata() }: CallOptions,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    const call = method as unknown as (...args: unknown[]) => void;
    const done: grpc.requestCallback<Response> = (error, response) =>
      error ? reject(error) : resolve(response as Response);
    call.call(client, request, metadata, { deadline: Date.now() + deadlineMs }, done);
  });
}

/** The items of a server stream. Leaving the loop cancels the call, which `for await` over a grpc-js stream does not. */
export async function* streaming<Item>(call: grpc.ClientReadableStream<Item>): AsyncGenerator<Item> {
  try {
    yield* call as AsyncIterable<Item>;
  } finally {
    // The cancel itself is reported as an error event, which would end the process if nobody listened.
    call.on("error", () => {});
    call.cancel();
  }
}

/** The name of a status code, such as "NOT_FOUND". */
export const codeName = (code: grpc.status): string => grpc.status[code] ?? `code ${code}`;
