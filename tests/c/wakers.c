/* Threads that take every return of a wait for a condition for the event that they wait for: they count them, and look at nothing
   else. Commands, a line each: "one" and "all" wake those at the first condition, "late" the one at the second, "count" tells how
   often those at each have returned. */
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t first = PTHREAD_COND_INITIALIZER, second = PTHREAD_COND_INITIALIZER;
static int woken[2];

static void *wait_for_ever(void *unused)
{
    pthread_mutex_lock(&lock);
    for (;;) {
        pthread_cond_wait(&first, &lock);
        woken[0]++;
    }
    return unused;
}

static void *wait_long(void *unused)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1000;
    pthread_mutex_lock(&lock);
    for (;;) {
        pthread_cond_timedwait(&second, &lock, &until);
        woken[1]++;
    }
    return unused;
}

int main(int argc, char **argv)
{
    struct sockaddr_in me = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argc > 1 ? argv[1] : "0"))};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    char line[100];
    pthread_t thread;

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&me, sizeof me) < 0 || listen(listener, 5) < 0) {
        perror("wakers");
        return 1;
    }
    for (int i = 0; i < 3; i++)
        pthread_create(&thread, NULL, i < 2 ? wait_for_ever : wait_long, NULL);
    for (;;) {
        struct pollfd client = {.fd = accept(listener, NULL, NULL), .events = POLLIN};
        ssize_t n;

        /* Where it waits for descriptors, a snapshot of it can be made. */
        while (poll(&client, 1, -1) > 0 && (n = recv(client.fd, line, sizeof line - 1, 0)) > 0) {
            line[n] = 0;
            pthread_mutex_lock(&lock);
            if (strncmp(line, "one", 3) == 0)
                pthread_cond_signal(&first);
            else if (strncmp(line, "all", 3) == 0)
                pthread_cond_broadcast(&first);
            else if (strncmp(line, "late", 4) == 0)
                pthread_cond_signal(&second);
            n = snprintf(line, sizeof line, "%d %d\n", woken[0], woken[1]);
            pthread_mutex_unlock(&lock);
            send(client.fd, line, (size_t)n, 0);
        }
    }
}
