// SPDX-License-Identifier: Apache-2.0

/**
 * The faults of a driver's answer in tonic's words and codes. The real gateway dials its driver with tonic, this fake with
 * grpc-js: both find the same faults, but word them differently, and users and logs see the words. Source: tonic 0.14,
 * codec/decode.rs, status.rs and client/grpc.rs.
 */
import { status } from "@grpc/grpc-js";
import { UNDECOMPRESSED } from "../../proto/contract.ts";
import { Status } from "../status.ts";

type Rule = [local: RegExp, code: status | undefined, words: (...found: string[]) => string];

/** How grpc-js words a fault that it found itself; an undefined code is the same in both. */
const RULES: Rule[] = [
  [/^Response message parsing error: (.*)$/s, status.INTERNAL, (why) => why!],
  [
    /^Received message larger than max \((\d+) vs (\d+)\)$/,
    status.OUT_OF_RANGE,
    (found, limit) =>
      `Error, decoded message length too large: found ${found} bytes, the limit is: ${limit} bytes`,
  ],
  [
    new RegExp(`^${UNDECOMPRESSED}$`),
    status.INTERNAL,
    () => "protocol error: received message with compressed-flag but no grpc-encoding was specified",
  ],
  [/^No message received$/, status.INTERNAL, () => "Missing response message."],
  [
    /^Received HTTP status code (?!200$)(\d+)$/,
    undefined,
    (http) => `grpc-status header missing, mapped from HTTP status code ${http}`,
  ],
  [
    /^Received HTTP status code 200$/,
    status.UNKNOWN,
    () =>
      "protocol error: missing grpc-status trailer, stream was terminated without a final status (possible truncation by a proxy or load balancer)",
  ],
  [/^Received RST_STREAM with code \d+/, undefined, () => "h2 protocol error: http2 error"],
];

/** The status of a call of the driver as the real gateway has it. */
export function asTonicSays(given: Status): Status {
  for (const [local, code = given.code, words] of RULES) {
    const found = local.exec(given.details);
    if (found) return new Status(code, words(...found.slice(1)));
  }
  return given;
}

/** What tonic's Display calls a code. */
const CODES: Partial<Record<status, string>> = {
  [status.OK]: "The operation completed successfully",
  [status.CANCELLED]: "The operation was cancelled",
  [status.UNKNOWN]: "Unknown error",
  [status.INVALID_ARGUMENT]: "Client specified an invalid argument",
  [status.DEADLINE_EXCEEDED]: "Deadline expired before operation could complete",
  [status.NOT_FOUND]: "Some requested entity was not found",
  [status.ALREADY_EXISTS]: "Some entity that we attempted to create already exists",
  [status.PERMISSION_DENIED]: "The caller does not have permission to execute the specified operation",
  [status.RESOURCE_EXHAUSTED]: "Some resource has been exhausted",
  [status.FAILED_PRECONDITION]: "The system is not in a state required for the operation's execution",
  [status.ABORTED]: "The operation was aborted",
  [status.OUT_OF_RANGE]: "Operation was attempted past the valid range",
  [status.UNIMPLEMENTED]: "Operation is not implemented or not supported",
  [status.INTERNAL]: "Internal error",
  [status.UNAVAILABLE]: "The service is currently unavailable",
  [status.DATA_LOSS]: "Unrecoverable data loss or corruption",
  [status.UNAUTHENTICATED]: "The request does not have valid authentication credentials",
};

/** A status as the real gateway logs it. */
export function loggedByTonic({ code, details }: Status): string {
  const message = details && `, message: ${JSON.stringify(details)}`;
  return `code: '${CODES[code] ?? "Unknown error"}'${message}`;
}
