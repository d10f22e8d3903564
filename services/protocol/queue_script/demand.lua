-- Which versions are asked for.

local function signal_registry()
  redis.call("PUBLISH", K .. ":signal", "demand")
end

local function touch(version, keep_alive_ms)
  redis.call("SADD", K .. ":demand", version)
  redis.call("HSET", K .. ":demand:" .. version, "used_at", now_ms())
  if keep_alive_ms then
    redis.call("HSET", K .. ":demand:" .. version, "keep_alive_ms", keep_alive_ms)
  end
end

-- Keeps the longest context that was asked for since the version was loaded.
local function request_context(version, tokens)
  local demand = K .. ":demand:" .. version
  local longest = math.max(number_or(redis.call("HGET", demand, "context_tokens"), 0), tokens)
  redis.call("HSET", demand, "context_tokens", longest)
end

local function name_version(version, name)
  redis.call("HSET", K .. ":demand:" .. version, "name", name)
end

-- version, keep_alive_ms: a use of the version
function commands.touch(a)
  touch(a.version, a.keep_alive_ms)
  signal_registry()
  return 1
end

-- version, tokens: a use of the version
function commands.request_context(a)
  touch(a.version)
  request_context(a.version, a.tokens)
  signal_registry()
  return 1
end

-- version -> 1, or 0 if requests wait for it. The version is unloaded; its keep_alive and context go too.
function commands.forget(a)
  if redis.call("ZCARD", K .. ":arrived:" .. a.version) > 0 then
    return 0
  end
  redis.call("SREM", K .. ":demand", a.version)
  redis.call("DEL", K .. ":demand:" .. a.version)
  return 1
end

-- -> for each version that was asked for: version, waiting, milliseconds since its last use, keep_alive_ms, context_tokens, name
-- ("" if missing), flat
function commands.demand()
  local now = now_ms()
  local rows = {}
  for _, version in ipairs(redis.call("SMEMBERS", K .. ":demand")) do
    local demand = read(K .. ":demand:" .. version, "used_at", "keep_alive_ms", "context_tokens", "name")
    rows[#rows + 1] = version
    rows[#rows + 1] = redis.call("ZCARD", K .. ":arrived:" .. version)
    rows[#rows + 1] = now - number_or(demand.used_at, now)
    rows[#rows + 1] = demand.keep_alive_ms or ""
    rows[#rows + 1] = demand.context_tokens or ""
    rows[#rows + 1] = demand.name or ""
  end
  return rows
end
