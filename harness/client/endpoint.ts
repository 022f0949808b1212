// SPDX-License-Identifier: Apache-2.0

/** Where a gateway is reached. */

/** Files with which a client calls a gateway with mTLS. */
export interface Certificates {
  ca: string;
  cert: string;
  key: string;
}

/** A gateway's public API. */
export interface Endpoint {
  /** Scheme, host and port. */
  endpoint: string;
  /** What a client proves itself with, where the gateway wants mTLS. */
  tls?: Certificates;
}
