-- Claims of requests by workers.
--
-- A worker leaves a request to another one, for a moment, if that one has much less to do for it: it has the beginning of the prompt in its
-- cache, and is not much busier. Prefixes of what a worker claims count as cached until the worker reports that they are not.

-- A worker leaves a request to another one that saves at least this many bytes of the prompt, which take longer to compute than PASSED_MS on
-- most machines: for PASSED_MS, or a tenth of what the request has waited. It looks at up to CANDIDATES requests for one that it takes.
local WORTH_BYTES = 1024
local PASSED_MS = 30
local PASSED_SHARE = 0.1
local CANDIDATES = 16

-- The other workers of the version. `load` is nil if one has no free slot.
local function others_than(worker, version)
  local others = {}
  local serving = redis.call("HGETALL", K .. ":serving:" .. version)
  for index = 1, #serving, 2 do
    local other, free = serving[index], tonumber(serving[index + 1])
    if not has_lease(other) then
      redis.call("HDEL", K .. ":serving:" .. version, other)
    elseif other ~= worker then
      others[#others + 1] = { id = other, load = free > 0 and load_of(other) or nil }
    end
  end
  return others
end

-- Whether the request is better left to one of the others. For one without a free slot only what it has cached counts: it may have a slot
-- soon, and then it has as much to do as the others.
local function is_for_another(worker, others, prefixes)
  local own_held, own_load = held_bytes(worker, prefixes), load_of(worker)
  for _, other in ipairs(others) do
    if held_bytes(other.id, prefixes) - own_held + (other.load and own_load - other.load or 0) > WORTH_BYTES then
      return true
    end
  end
  return false
end

-- The first request of the queue, which is not empty, that the worker takes. -> its id and its start tag, or nil, nil and the milliseconds
-- until it may take one of those that it left to others.
local function next_for(worker, others, version, band, now)
  local again_ms = math.huge
  local candidates = redis.call("ZRANGE", queue_of(version, band), 0, #others > 0 and CANDIDATES - 1 or 0, "WITHSCORES")
  for index = 1, #candidates, 2 do
    local id, start = candidates[index], tonumber(candidates[index + 1])
    local request = read(request_key(id), "prefixes", "until", "at")
    local ends = number_or(request["until"], math.huge)
    if not request.prefixes or now >= ends or not is_for_another(worker, others, request.prefixes) then
      return id, start
    elseif not request["until"] then
      ends = now + math.max(PASSED_MS, math.floor(PASSED_SHARE * (now - tonumber(request.at))))
      redis.call("HSET", request_key(id), "until", ends)
    end
    again_ms = math.min(again_ms, ends - now)
  end
  return nil, nil, again_ms
end

-- Moves the request from the queue to the worker. -> bytes of its prompt that the worker had cached before
local function give(id, start, request, band, a)
  local claims, vtime = K .. ":claims:" .. a.worker, K .. ":vtime:" .. a.version
  remove(id, a.version, band, request.caller)
  redis.call("HDEL", request_key(id), "deadline")
  redis.call("HSET", request_key(id), "worker", a.worker, "claim", a.claim)
  redis.call("SADD", claims, id)
  redis.call("PEXPIRE", claims, a.ttl_ms)
  local held_before = held_bytes(a.worker, request.prefixes)
  hold(a.worker, request.prefixes, a.ttl_ms)
  redis.call("HSET", vtime, band, exact(math.max(number_or(redis.call("HGET", vtime, band), 0), start)))
  redis.call("PEXPIRE", vtime, a.ttl_ms)
  count_passed(a.version, band, a.ttl_ms)
  return held_before
end

local function set_idle(version, worker, free, ttl_ms)
  local idle = K .. ":idle:" .. version
  if free > 0 then
    redis.call("SADD", idle, worker)
    redis.call("PEXPIRE", idle, ttl_ms)
  else
    redis.call("SREM", idle, worker)
  end
  if redis.call("HEXISTS", K .. ":serving:" .. version, worker) == 1 then
    redis.call("HSET", K .. ":serving:" .. version, worker, free)
  end
end

-- version, worker, capacity, ttl_ms, claim (names this call), repeated (its answer may have been lost: give it again), aging_ms, dropped
-- (digests of prefixes that the worker has no longer cached)
-- -> milliseconds after which the worker may take what it now left to others, or "", then up to `capacity` times
-- id, epoch, payload, resumption or "", bytes of the prompt that the worker had cached before (0 if it is given again), flat.
-- A worker that gets fewer than it asked for is idle from now on and will be woken. One without a lease gets nothing: what it took could
-- not be recovered. A request whose deadline is over leaves the queue on the way: its gateway finds it gone.
function commands.claim(a)
  local answer, now = { "" }, now_ms()
  local function append(id, epoch, request, held_before)
    answer[#answer + 1] = id
    answer[#answer + 1] = tonumber(epoch)
    answer[#answer + 1] = request.payload
    answer[#answer + 1] = request.resumption or ""
    answer[#answer + 1] = held_before
  end
  for _, digest in ipairs(a.dropped) do
    redis.call("SREM", K .. ":held:" .. a.worker, digest)
  end
  if a.repeated then
    for _, id in ipairs(redis.call("SMEMBERS", K .. ":claims:" .. a.worker)) do
      local request = read(request_key(id), "epoch", "payload", "claim", "resumption")
      if request.claim == a.claim then
        append(id, request.epoch, request, 0)
      end
    end
  end
  if not has_lease(a.worker) then
    return answer
  end
  local others = others_than(a.worker, a.version)
  while #answer < 1 + 5 * a.capacity do
    local band = next_band(a.version, now, a.aging_ms)
    local id, start, again_ms
    if band then
      id, start, again_ms = next_for(a.worker, others, a.version, band, now)
    end
    if not id then
      answer[1] = again_ms or ""
      break
    end
    local request = read(request_key(id), "payload", "caller", "resumption", "deadline", "at", "prefixes")
    if not request.payload then
      -- The record has expired, and with it the name of its caller.
      redis.call("ZREM", queue_of(a.version, band), id)
      redis.call("ZREM", K .. ":arrived:" .. a.version, id)
    elseif request.deadline and now >= tonumber(request.deadline) then
      withdraw(id)
    else
      count_drained(a.version, tonumber(request.at), now, a.ttl_ms)
      local held_before = give(id, start, request, band, a)
      append(id, redis.call("HINCRBY", request_key(id), "epoch", 1), request, held_before)
    end
  end
  set_idle(a.version, a.worker, a.capacity - (#answer - 1) / 5, a.ttl_ms)
  return answer
end

-- id, epoch, ttl_ms, wake (a message), resumption -> 1, or 0 if the claim of that epoch is no longer the current one.
-- The request goes back to its old place. Its epoch rises, so that late events of the lost worker are dropped.
function commands.requeue(a)
  local key = request_key(a.id)
  local request = read(key, "version", "band", "caller", "start", "at", "epoch", "worker", "prefixes")
  if number_or(request.epoch, -1) ~= a.epoch or not request.worker then
    return 0
  end
  redis.call("HINCRBY", key, "epoch", 1)
  redis.call("HDEL", key, "worker", "claim")
  redis.call("HSET", key, "resumption", a.resumption, "until", 0)
  redis.call("SREM", K .. ":claims:" .. request.worker, a.id)
  add(a.id, request, a.ttl_ms, a.wake)
  return 1
end

-- gateway -> id, epoch, worker, crashed (1 or 0), flat: this gateway's requests whose worker's lease has ended
function commands.lost(a)
  local lost = {}
  for _, worker in ipairs(redis.call("ZRANGEBYSCORE", K .. ":workers", "-inf", "(" .. now_ms())) do
    local claims = K .. ":claims:" .. worker
    for _, id in ipairs(redis.call("SMEMBERS", claims)) do
      local request = read(request_key(id), "gateway", "epoch")
      if not request.gateway then
        redis.call("SREM", claims, id)
      elseif request.gateway == a.gateway then
        lost[#lost + 1] = id
        lost[#lost + 1] = tonumber(request.epoch)
        lost[#lost + 1] = worker
        lost[#lost + 1] = redis.call("EXISTS", K .. ":crashed:" .. worker)
      end
    end
    if redis.call("EXISTS", claims) == 0 then
      redis.call("DEL", K .. ":held:" .. worker)
      redis.call("ZREM", K .. ":workers", worker)
    end
  end
  return lost
end
