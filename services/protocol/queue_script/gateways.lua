-- Gateways: their leases, and the requests of those that are gone.

local function gateway_has_lease(gateway)
  return redis.call("EXISTS", K .. ":gateway:" .. gateway) == 1
end

-- gateway, metrics (the address), lease_ms, stream_ms -> {1 if its lease was still there, 1 if its reply stream was}, otherwise 0
-- Both are there afterwards. While the lease was gone, `retract` may have taken requests back; from now on it does not.
function commands.renew(a)
  local lease, replies = K .. ":gateway:" .. a.gateway, K .. ":replies:" .. a.gateway
  local had_lease, had_stream = redis.call("EXISTS", lease), redis.call("EXISTS", replies)
  redis.call("SADD", K .. ":gateways", a.gateway)
  redis.call("SET", lease, a.metrics, "PX", a.lease_ms)
  if had_stream == 0 then
    redis.call("XADD", replies, "*", "hello", "")
    redis.call("XTRIM", replies, "MAXLEN", 0)
  end
  redis.call("PEXPIRE", replies, a.stream_ms)
  return { had_lease, had_stream }
end

-- gateway, id, message -> 1, or 0 if the gateway has its lease: then it looks after the request itself.
-- Takes back a request of a gateway that is gone; a worker that holds it gets the message. Its caller pays what was estimated.
function commands.retract(a)
  if gateway_has_lease(a.gateway) then
    return 0
  end
  if not withdraw(a.id) then
    local worker = redis.call("HGET", request_key(a.id), "worker")
    if worker then
      send(worker, a.message)
      redis.call("SREM", K .. ":claims:" .. worker, a.id)
    end
    redis.call("DEL", request_key(a.id))
  end
  return 1
end

-- gateway -> 1, or 0 if it has its lease. Removes a gateway that is gone.
function commands.remove_gateway(a)
  if gateway_has_lease(a.gateway) then
    return 0
  end
  redis.call("SREM", K .. ":gateways", a.gateway)
  redis.call("DEL", K .. ":replies:" .. a.gateway)
  return 1
end
