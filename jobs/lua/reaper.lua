-- What is put back, sent again or removed, whoever does it.

-- lease crash_error poison_error -> {ids whose hint is due, ids whose artifacts are to be removed}
function step.reap(lease, crash_error, poison_error)
  lease = tonumber(lease)
  local last = tonumber(redis.call('GET', P .. 'reaped_at') or now)
  redis.call('SET', P .. 'reaped_at', time(now))
  if now - last > lease / 2 then  -- Redis or every reaper was away: nobody could renew
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', now + lease)) do
      redis.call('ZADD', P .. 'running', now + lease, id)
      redis.call('HSET', job(id), 'lease_until', time(now + lease))
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', now, 'LIMIT', 0, 100)) do
    local crashes = redis.call('HINCRBY', job(id), 'crashes', 1)
    close_attempt(id, crash_error)
    if redis.call('HEXISTS', job(id), 'cancel') == 1 then
      move(id, 'canceled')
    elseif crashes >= CRASHES then
      redis.call('HSET', job(id), 'error', poison_error)
      redis.call('ZADD', P .. 'dead', now, id)
      move(id, 'failed')
    else
      enqueue(id, 0)
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadlines', '-inf', now, 'LIMIT', 0, 100)) do
    move(id, 'expired')
  end
  local due = redis.call('ZRANGEBYSCORE', P .. 'send', '-inf', now, 'LIMIT', 0, 100)
  for _, id in ipairs(due) do
    local sends = redis.call('HINCRBY', job(id), 'sends', 1)
    redis.call('ZADD', P .. 'send', now + math.min(RESEND_MAX, RESEND * 2 ^ (sends - 1)), id)
  end
  return {due, redis.call('ZRANGE', P .. 'purge', 0, 99)}
end

function step.purged(id)
  local h = get(id, 'tenant', 'state', 'batch')
  redis.call('ZREM', P .. 'purge', id)
  redis.call('ZREM', P .. 'dead', id)
  if h[1] then redis.call('ZREM', P .. 'jobs:' .. h[1] .. ':' .. h[2], id) end
  redis.call('DEL', job(id))
  if h[3] then leave_batch(h[3], id) end
end
