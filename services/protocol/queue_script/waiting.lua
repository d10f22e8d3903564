-- Waiting requests, in a fair order.
--
-- Virtual times count tokens divided by the caller's weight: a request's start tag is the later of its band's virtual time and its
-- caller's last finish tag there, and its finish tag lies cost / weight after that. So callers with waiting requests advance by their
-- weights, whatever their number of requests (Goyal, Vin, Cheng: Start-Time Fair Queueing, 1996). A caller that gets tokens back
-- (settle, cancel) does not overtake its own waiting requests with them.
--
-- More urgent bands go first. A band whose head has waited for the aging time gets a claim after every PASSES that went to more urgent
-- ones: it never starves, and however much of it has aged, it does not hold the urgent ones up.

local PASSES = 4

-- The drain rate is that of about the last WINDOW_MS in which requests waited, and unknown before MEASURED_MS of that. A request that was
-- claimed within STRAIGHT_MS met a free slot: it says nothing about how fast a queue drains.
local WINDOW_MS = 30000
local MEASURED_MS = 500
local STRAIGHT_MS = 20

local function queue_of(version, band)
  return K .. ":queue:" .. version .. ":" .. band
end

local function waiting_of(version, band, caller)
  return K .. ":waiting:" .. version .. ":" .. band .. ":" .. caller
end

local function depth_of(version)
  return redis.call("ZCARD", K .. ":arrived:" .. version)
end

-- Requests that left for a worker and the milliseconds in which requests waited, both as they weigh now.
local function drained(version, now)
  local drain = read(K .. ":drain:" .. version, "left", "busy_ms", "at")
  local elapsed = depth_of(version) > 0 and math.max(0, now - number_or(drain.at, now)) or 0
  local decay = math.exp(-elapsed / WINDOW_MS)
  return number_or(drain.left, 0) * decay, number_or(drain.busy_ms, 0) * decay + elapsed
end

-- A request that arrived at `at` leaves for a worker.
local function count_drained(version, at, now, ttl_ms)
  if now - at < STRAIGHT_MS then
    return
  end
  local left, busy_ms = drained(version, now)
  redis.call("HSET", K .. ":drain:" .. version, "left", exact(left + 1), "busy_ms", exact(busy_ms), "at", now)
  redis.call("PEXPIRE", K .. ":drain:" .. version, ttl_ms)
end

-- Requests per second that leave the queue, and how many it may well be: two standard deviations above one more than were counted (of a
-- Poisson count), so that a few slow ones do not mean that all will be slow. nil if that is not known.
local function known_rate(version)
  local left, busy_ms = drained(version, now_ms())
  if busy_ms >= MEASURED_MS and left > 0 then
    return left / busy_ms * 1000, (left + 1 + 2 * math.sqrt(left + 1)) / busy_ms * 1000
  end
end

-- The same as text, "" for nil.
local function drain_rate(version)
  local rate = known_rate(version)
  return rate and exact(rate) or ""
end

-- `request`: version, band, caller, start, at, prefixes. -> whether an idle worker was woken
local function add(id, request, ttl_ms, message)
  local version = request.version
  local arrived, callers, drain = K .. ":arrived:" .. version, K .. ":callers:" .. version, K .. ":drain:" .. version
  if depth_of(version) == 0 then
    redis.call("HSET", drain, "at", now_ms())
    redis.call("PEXPIRE", drain, ttl_ms)
  end
  redis.call("ZADD", arrived, request.at, id)
  redis.call("PEXPIRE", arrived, ttl_ms)
  redis.call("ZINCRBY", callers, 1, request.caller)
  redis.call("PEXPIRE", callers, ttl_ms)
  for _, key in ipairs({ queue_of(version, request.band), waiting_of(version, request.band, request.caller) }) do
    redis.call("ZADD", key, request.start, id)
    redis.call("PEXPIRE", key, ttl_ms)
  end
  local woken = wake(version, message, request.prefixes)
  if not woken then
    signal_registry()
  end
  return woken
end

-- -> whether it waited
local function remove(id, version, band, caller)
  if redis.call("ZREM", K .. ":arrived:" .. version, id) == 0 then
    return false
  end
  redis.call("ZREM", queue_of(version, band), id)
  redis.call("ZREM", waiting_of(version, band, caller), id)
  if tonumber(redis.call("ZINCRBY", K .. ":callers:" .. version, -1, caller)) <= 0 then
    redis.call("ZREM", K .. ":callers:" .. version, caller)
  end
  return true
end

-- Moves the caller's last finish tag by `tokens`, which may be negative.
local function charge(request, tokens)
  local key = K .. ":finish:" .. request.version .. ":" .. request.band
  local finish = redis.call("HGET", key, request.caller)
  if finish then
    redis.call("HSET", key, request.caller, exact(tonumber(finish) + tokens / tonumber(request.weight)))
  end
end

-- Takes a waiting request out unserved: its caller gets the tokens back. -> whether it waited
local function withdraw(id)
  local request = read(request_key(id), "version", "band", "caller", "cost", "weight")
  if not request.version or not remove(id, request.version, request.band, request.caller) then
    return false
  end
  charge(request, -tonumber(request.cost))
  redis.call("DEL", request_key(id))
  return true
end

-- The earliest start tag that keeps a caller's next request after its last waiting one: one float later.
local function after_own(version, band, caller)
  local last = redis.call("ZREVRANGE", waiting_of(version, band, caller), 0, 0, "WITHSCORES")
  local start = number_or(last[2], -1)
  return start + math.max(start, 1) * 2 ^ -52
end

-- `ahead` in its own band, and all in more urgent ones.
local function with_urgent(version, band, ahead)
  for urgent = 0, band - 1 do
    ahead = ahead + redis.call("ZCARD", queue_of(version, urgent))
  end
  return ahead
end

-- How many go before it as things are; nil if it does not wait.
local function ahead_of(id, version, band)
  local ahead = redis.call("ZRANK", queue_of(version, band), id)
  return ahead and with_urgent(version, band, ahead) or nil
end

-- How many would go before a request with this start tag.
local function ahead_of_start(version, band, start)
  return with_urgent(version, band, redis.call("ZCOUNT", queue_of(version, band), "-inf", exact(start)))
end

-- How many go before the last waiting request of a caller in the band, that one included; `depth` if it has none there.
local function ahead_of_next(version, band, caller, depth)
  local last = redis.call("ZREVRANGE", waiting_of(version, band, caller), 0, 0)
  return last[1] and ahead_of(last[1], version, band) + 1 or depth
end

-- The band that the next claim goes to; nil if nothing waits.
local function next_band(version, now, aging_ms)
  local first = nil
  for band = 0, BANDS - 1 do
    local head = redis.call("ZRANGE", queue_of(version, band), 0, 0)
    if head[1] and not first then
      first = band
    elseif head[1] and number_or(redis.call("HGET", K .. ":passed:" .. version, band), 0) >= PASSES
      and now - number_or(redis.call("HGET", request_key(head[1]), "at"), now) >= aging_ms then
      return band
    end
  end
  return first
end

-- A claim went to the band `served`.
local function count_passed(version, served, ttl_ms)
  local passed = K .. ":passed:" .. version
  redis.call("HDEL", passed, served)
  for band = served + 1, BANDS - 1 do
    if redis.call("EXISTS", queue_of(version, band)) == 1 then
      redis.call("HINCRBY", passed, band, 1)
      redis.call("PEXPIRE", passed, ttl_ms)
    end
  end
end
